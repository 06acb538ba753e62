"""The native drill: the whole site, with every capability, on one machine at native speed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

from facts.places import STATE
from holdfast import backup, egress, owned
from holdfast.floor import FLOOR_STATE
from tests.drill import (
    attack,
    cards,
    engines,
    exploits,
    lockout,
    modes,
    personal,
    private,
    sabotage,
    tenants,
)
from tests.drill import sabotages as known
from tests.drill.cards import Cards
from tests.drill.converge import ROOT, steps
from tests.drill.engines import Engines
from tests.drill.exploits import Exploits
from tests.drill.lockout import LockOut
from tests.drill.modes import Modes
from tests.drill.native_stage import PRIVATE_ROUTERS, NativeStage
from tests.drill.not_here import ELSEWHERE
from tests.drill.personal import Personal
from tests.drill.private import Private
from tests.drill.rehearsal import Act
from tests.drill.scenario import VERSIONS, Drill
from tests.drill.serving import VERSIONS as SERVING_VERSIONS
from tests.drill.site import Site, versions
from tests.drill.tenants import Tenants
from tests.lab.container_machine import NOT_ENFORCED
from tests.lab.process import output_of

LEFT = (
    "Packets of tailscaled and of time synchronisation are not counted.",
    "NFS mounts, DKMS, a driver that is loaded and the reboot it takes: `make drill-vm` and"
    " `make drill-gpu` have them.",
)
"""The parts of the site that only the virtual machine can test, besides host tests."""


TENTHS = 10


def revision() -> str:
    """The commit that is drilled, in hexadecimal."""
    return output_of(["git", "-C", str(ROOT), "rev-parse", "HEAD"]).strip()


class NativeDrill(Drill):
    """One pass over all of Holdfast's promises, on one container."""

    kind = "native"
    does_sabotage = True
    """Whether it includes the sabotages."""
    least_survived = 25
    """The least number of faults that the rack must survive."""
    untaken = ("Tenants",)
    silent_seconds = 8
    packets_per_second = 20000
    stage: NativeStage
    engines: Engines
    exploits: Exploits
    private: Private
    personal: Personal
    modes: Modes
    cards: Cards
    lockout: LockOut
    tenants: Tenants

    def __init__(self, debian: int, *, seed: int, sabotage: bool = False) -> None:
        """Prepare it; with ``sabotage`` the rack is hurt in every way, else in a tenth of them."""
        super().__init__(debian, seed=seed, sabotage=sabotage)
        self.record.least_survived = self.least_survived
        tenth = int(revision()[:8], 16) % TENTHS
        self.chosen = known.NATIVE if sabotage else known.NATIVE[tenth::TENTHS]
        if self.does_sabotage and not sabotage:
            told = f"{len(self.chosen)} of {len(known.NATIVE)} sabotages, tenth {tenth}"
            self.record.notes.append(f"{told}, chosen by the commit's hash.")
        self.record.title = f"Holdfast drill on one machine, Debian {debian}"
        self.record.notes += [*NOT_ENFORCED, *LEFT]
        self.record.notes += [
            f"{test}: left to the virtual machine; {why}." for test, why in ELSEWHERE[self.kind]
        ]

    def acts(self) -> Sequence[Act]:
        """Start a rack, serve from it, attack and disturb it, lose it and restore it."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a bare machine", self._boot, vital=True, rows=(1,)),
            Act("converge a bare machine", self._converge_bare, vital=True, rows=(1,)),
            Act("converge again", self._converge_again, rows=(1,)),
            Act("publish containers", self._publish),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            Act("call from two peers of the tailnet", lambda: self._call("serving"), rows=(8,)),
            Act("attack from the LAN", self._attack_serving, rows=(6, 7)),
            # Before a reboot, which starts containers by the engine's settings as they are then.
            Act("mend what a hand has changed", self._mend, rows=(33,)),
            *cards.acts(lambda: self.cards),
            exploits.set_traps(lambda: self.exploits),
            *engines.acts(lambda: self.engines),
            exploits.look_at_traps(lambda: self.exploits),
            *private.acts(lambda: self.private),
            Act("reboot private work", self._reboot, rows=(6, 7, 14, 15)),
            *personal.acts(lambda: self.personal),
            *exploits.of_callers(lambda: self.exploits),
            Act("containers of two tiers", lambda: self.private.containers(), rows=(15,)),
            Act("what a router costs", lambda: self.private.latency(), rows=(14,)),
            *modes.acts(lambda: self.modes, lambda: self.engines),
            Act("ask clouds after a reboot", lambda: self.personal.after_reboot(), rows=(14,)),
            Act("restart Docker, reload the firewall", self._reload, rows=(6, 7)),
            *tenants.acts(lambda: self.tenants),
            Act("lose a card", self._lose_a_card, rows=(3,)),
            *lockout.acts(lambda: self.lockout),
            *exploits.of_users(lambda: self.exploits),
            Act("take services out, and put them back", self._take_out, rows=(33,)),
            Act("keep data in two places", self._keep_data, rows=(17,)),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("lose the rack", self._lose, vital=True, rows=(1,)),
            Act("rebuild", self._rebuild, vital=True, rows=(1,)),
            Act("restore", self._restore_all, rows=(17,)),
            Act("verify the rebuilt rack", self._verify_rebuilt, rows=(33,)),
        )

    def _build(self) -> None:
        self.stage = NativeStage(self.debian)
        self.site = Site(self.record, self.stage.inventory, self.stage.logs)
        # What costs a start of the engine is tried whole where all sabotages are.
        chance = None if self.sabotage else self._chance
        self.engines = Engines(self.stage, self.site, chance)
        self.private = Private(self.stage, self.site, PRIVATE_ROUTERS)
        self.personal = Personal(self.stage, self.site, PRIVATE_ROUTERS)
        self.modes = Modes(self.stage, self.site, chance)
        self.cards = Cards(self.stage, self.site)
        self.lockout = LockOut(self.stage, self.site)
        self.tenants = Tenants(self.stage, self.site)
        self.exploits = Exploits(self.stage, self.site)

    def _boot(self) -> None:
        super()._boot()
        self._hand_over()

    def _hand_over(self) -> None:
        """Give the rack a service that is not part of the site."""
        self.private.hand_over()
        self.personal.hand_over()

    def _converge_bare(self) -> None:
        self._cut_power([self._step])
        self.site.converge("bare", fatal=True)
        self._have_internet()
        self.record.versions |= versions(self.stage.rack, VERSIONS | SERVING_VERSIONS)

    def _have_internet(self) -> None:
        """Have everything beyond the rack's own links be the lab's, and its names known."""
        self.stage.cloud.become_the_internet_of(self.stage.rack)
        # A look-up from before would be joined instead, and it may have found no resolver.
        self.stage.rack.wait_until_succeeds(
            f"! systemctl is-active {egress.RESOLVE} | grep --quiet activating", timeout_seconds=120
        )
        self.stage.rack.start_unit(egress.RESOLVE)
        # It has run since before there was nft, which marks what it sends.
        self.stage.rack.succeed("systemctl restart systemd-timesyncd")

    def _reboot(self) -> None:
        with self.private.nothing_leaves("over a reboot"):
            self._boot_again()
        self._expect_closed("a reboot", self._attack("after reboot"))
        self._ask_floor("after reboot")
        self.site.verify("after reboot")

    def _boot_again(self) -> None:
        record, rack, began = self.record, self.stage.rack, time.monotonic()
        rack.reboot()
        attack.wait_for_containers(rack)
        record.figures["reboot until containers answer"] = f"{time.monotonic() - began:.0f} s"
        self.engines.wait_until_serving()
        record.figures["reboot until engines complete"] = f"{time.monotonic() - began:.0f} s"
        self.private.wait_until_ready()

    def _lose_a_card(self) -> None:
        # Without the kernel's log there is no Xid that would say more.
        address = self.stage.cards.cards[cards.VANISHING].address
        self.cards.lose_one(f"({address}) is on the bus and not in nvidia-smi")
        self.cards.find_it_again()

    def _take_out(self) -> None:
        """Remove all services of ours from the inventory, and declare them again."""
        rack, record = self.stage.rack, self.record
        models = self.stage.settings.storage.models_path
        kept = [FLOOR_STATE, models, f"{STATE}/ledger", backup.STATE]
        gone: dict[str, object] = {"floor": None, "vllm": None, "clouds": None, "backup": None}
        gone |= {"routers": [], "gpus": None, "services": [private.PHOTOS_SERVICE]}
        with self.stage.declared(**gone):
            self.site.converge("without services", fatal=True)
            found = rack.execute(f"ls -dp {' '.join(owned.patterns())} 2>/dev/null")[1].split()
            declared = owned.declared(self.stage.settings)
            left = [path for path in found if not path.endswith("/") and path not in declared]
            record.check(
                "what was removed from the inventory is removed from the rack", not left, left
            )
            names = "holdfast-floor* holdfast-vllm-* holdfast-router-* holdfast-backup@*"
            running = rack.succeed(f"systemctl list-units --plain --no-legend {names}").strip()
            record.check("and no longer runs", not running, running)
            here = rack.execute(f"ls -d {' '.join(kept)}")
            record.check("models, the ledger and records of backups stay", here[0] == 0, here[1])
            self.site.expect_nothing("without services, again")
        self._take_out_the_way_in(gone)
        self.site.converge("with services again", fatal=True)
        attack.wait_for_containers(rack)
        self.engines.wait_until_serving()
        self.private.wait_until_ready()
        self.site.expect_nothing("with services again, again")

    def _take_out_the_way_in(self, gone: Mapping[str, object]) -> None:
        """Declare neither Docker nor a tailnet; logins then come over the LAN."""
        ssh = self.stage.inventory_data()["ssh"] | {"lan_access": "keep"}
        # The LAN lets SSH in again before the tailnet goes.
        with self.stage.declared(**gone, ssh=ssh):
            self.site.converge("SSH on the LAN", fatal=True)
        lan: dict[str, object] = {"docker": None, "tailnet": None, "ssh_hostname": "rack-lan"}
        lan["ssh"] = ssh | {"callers": []}
        with self.stage.declared(**gone, **lan, firewall={"rollback_seconds": 30}):
            self.site.converge("by the LAN alone", fatal=True)
            running = self.stage.rack.execute("systemctl is-active docker tailscaled")[1].split()
            left = running == ["inactive", "inactive"]
            self.record.check(
                "Docker and the tailnet leave a rack that can be reached", left, running
            )
            self.site.expect_nothing("by the LAN alone, again")

    def _sabotage(self) -> None:
        sabotage.commit(self.site, self.stage.rack, self.chosen, complete=self.sabotage)

    def _lose(self) -> None:
        self.stage.wipe_rack()
        self._hand_over()

    def _rebuild(self) -> None:
        began = time.monotonic()
        self.site.converge("rebuild", fatal=True)
        self.record.figures["rebuild from an empty disk"] = f"{time.monotonic() - began:.0f} s"
        self.site.expect_nothing("after rebuild")
        self._have_internet()


class ShortDrill(NativeDrill):
    """The drill without what starts engines again and again, and what only time can show.

    The site is the whole one, every host test judges it, and it is held to what it promises of
    private work, of clouds and of budgets.
    """

    does_sabotage = False
    least_survived = 0
    LEFT_OUT = (
        *("set traps for root as an engine", "look for what ran as root"),
        *("lead root astray by links and races", "back up a hostile folder"),
        *("bench", "replace a model", "replace it by what does not serve"),
        *("kill an engine, and ask the floor", "what a router costs"),
        "take services out, and put them back",
        *("switch from mode to mode", "switch while somebody is at work"),
        *("switch beside a stranger", "switch in vain", "stay in another mode, then reboot"),
        *("ask clouds after a reboot", "lose a card", "lock the operator out by the firewall"),
        tenants.ACT,
        *("lock the operator out by SSH", "withdraw SSH from the LAN in vain", "sabotage"),
    )
    """The phases of the whole drill."""

    def acts(self) -> Sequence[Act]:
        """The phases of the whole drill, without those that are left out."""
        return tuple(act for act in super().acts() if act.name not in self.LEFT_OUT)


class CutsDrill(NativeDrill):
    """Cut the power in each step of the first converge in turn; then it must finish."""

    does_sabotage = False
    least_survived = 0

    def acts(self) -> Sequence[Act]:
        """Cut, converge, and judge."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a bare machine", self._boot, vital=True, rows=(1,)),
            Act("cut the power in each step", self._cut_everywhere, vital=True, rows=(1,)),
            Act("converge again", self._converge_again, rows=(1,)),
            Act("verify", self._verify, rows=(33,)),
        )

    def _verify(self) -> None:
        # A host test looks at a container that publishes a port of a declared service.
        self._publish()
        self.site.verify("after every cut")

    def _cut_everywhere(self) -> None:
        self._cut_power([step for step in steps() if step not in self.untaken])
        self.site.converge("after every cut", fatal=True)
        self._have_internet()
