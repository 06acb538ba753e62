"""The drill: nothing -> hardened and serving -> attacked -> disturbed -> lost -> rebuilt."""

from __future__ import annotations

import random
import re
import subprocess
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from holdfast import egress, integrity
from holdfast.docker import DAEMON_JSON
from holdfast.firewall import TIMER, WATCH
from tests.drill import attack, audit, sabotage, sabotages
from tests.drill.converge import start, steps
from tests.drill.rehearsal import Act, Rehearsal, load_probe_image
from tests.drill.site import Site, versions
from tests.drill.stage import INVENTORY, RackStage, Stage
from tests.lab.artefacts import container

DATA = "/srv/data"
"""A path that `inventories/drill.py` declares as state."""
NAS = "/mnt/nas"
"""Where it declares the NAS to be mounted."""
REPOSITORIES = ("nas", "offsite")
WITHIN_SECONDS = 3
"""The power is cut at most so long after a step has begun."""
ANSWER_SECONDS = 180
"""How long a rack may take to answer a peer who may call, while a busy machine emulates it."""
VERSIONS = {
    "kernel": "uname -r",
    "docker": "docker --version",
    "tailscale": "tailscale version | head -n 1",
    "ufw": "ufw --version | head -n 1",
    "systemd": "systemctl --version | head -n 1",
    "openssh": "sshd -V 2>&1 | head -n 1",
}
"""What the report names, and what tells it on the rack."""


def _wait_for_step(run: subprocess.Popen[bytes], log: Path, step: str) -> bool:
    """Wait until a converge begins a step; False where it ended before."""
    while f"Starting operation: {step} | " not in log.read_text(errors="replace"):
        if run.poll() is not None:
            return False
        time.sleep(0.05)
    return True


class Drill(Rehearsal):
    """One pass over everything Holdfast promises, on one rack."""

    kind = "virtual"
    stage: RackStage
    untaken: Collection[str] = (
        *("Cards on the bus", "GPU driver", "Cards as driven", "GPU limits", "Cards accepted"),
        *("GPU containers", "Ledger", "GPU modes, their services", "Engines"),
        *("Engines, their doors", "Routers", "Tenants", "GPU containers, a last look"),
    )
    """Steps in which its rack, which has no card, does nothing: the power cannot be cut there."""
    silent_seconds = 45
    """How long what is dropped must be silent: several times what such a rack takes to answer."""
    packets_per_second = 4000
    """How fast a scan may be without that an emulated rack misses packets."""

    def __init__(
        self,
        debian: int,
        *,
        seed: int,
        rebuild: bool = True,
        audit: bool = False,
        sabotage: bool = False,
    ) -> None:
        """Prepare it; with ``sabotage`` the rack is hurt in the end in every way we know.

        Without ``rebuild`` the rack is not lost: its only converge is the one that is cut off.
        """
        super().__init__(f"Holdfast drill, Debian {debian}")
        self.debian = debian
        self.rebuild = rebuild
        self.audit = audit
        self.sabotage = sabotage
        self._kept = ""
        self._chance = random.Random(seed)  # noqa: S311
        taken = [step for step in steps() if step not in self.untaken]
        self._step = self._chance.choice(taken)
        self.record.notes.append(f"seed {seed}: the power is cut in the step {self._step}")

    def acts(self) -> Sequence[Act]:
        """Raise a rack, disturb it, keep its data and restore it."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot bare machines", self._boot, vital=True, rows=(1,)),
            Act("converge a bare machine", self._converge_bare, vital=True, rows=(1,)),
            Act("converge again", self._converge_again, rows=(1,)),
            # First: a host test is about the container of a declared service.
            Act("publish containers", self._publish),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            # The shorter drill is content with what it asks after a reboot and a reload.
            *self._when(
                self.rebuild,
                Act("call from two peers of the tailnet", lambda: self._call("serving"), rows=(8,)),
                Act("attack from the LAN", self._attack_serving, rows=(6, 7)),
            ),
            Act("mend what a hand has changed", self._mend, rows=(33,)),
            Act("reboot, the NAS away", self._reboot, rows=(6, 7)),
            Act("restart Docker, reload the firewall", self._reload, rows=(6, 7)),
            Act("keep data in two places", self._keep_data, rows=(17,)),
            *self._when(self.audit, Act("audit", self._audit, rows=(1,))),
            *self._when(
                self.rebuild,
                Act("lose the rack, cut power in mid-rebuild", self._lose, vital=True, rows=(1,)),
                Act("rebuild", self._rebuild, vital=True, rows=(1,)),
            ),
            Act("restore", self._restore_all, rows=(17,)),
            *self._when(
                self.rebuild, Act("verify the rebuilt rack", self._verify_rebuilt, rows=(33,))
            ),
            *self._when(self.sabotage, Act("sabotage", self._sabotage, rows=(34,))),
        )

    @staticmethod
    def _when(chosen: bool, *acts: Act) -> Sequence[Act]:
        return acts if chosen else ()

    def _build(self) -> None:
        self.stage = stage = Stage(self.debian)
        self.lab = stage.lab
        self.site = Site(self.record, INVENTORY, self.stage.logs)

    def _boot(self) -> None:
        self.stage.raise_curtain()
        bare = attack.scan(
            self.stage.neighbour, udp=False, ipv6=False, rate=self.packets_per_second
        )
        # The control: a scanner that sees nothing on a bare machine would prove nothing later.
        self.record.check("the neighbour's scan sees SSH on the bare rack", 22 in bare, bare, True)
        self.stage.rack.succeed(f"mkdir {DATA} && head -c 8M /dev/urandom > {DATA}/state.bin")

    def _converge_bare(self) -> None:
        if not self.rebuild:
            self._cut_power([self._step])
        self.site.converge("bare", fatal=True)

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.rack, VERSIONS)

    def _publish(self) -> None:
        load_probe_image(self.stage.rack)
        attack.publish_containers(self.stage.rack, container.IMAGE)
        # Containers send packets as they start: the watch reports those before any host test.
        self.stage.rack.wait_until_succeeds(f"{egress.PROGRAM} watch", timeout_seconds=60)

    def _attack_serving(self) -> None:
        self._attack("serving")
        self._ask_floor("serving")

    def _reboot(self) -> None:
        record, rack, lan = self.record, self.stage.rack, self.lab.network
        # A mount in use would hold the shutdown until its time-out, minutes under emulation.
        rack.succeed(f"systemctl stop $(systemd-escape --path --suffix=mount {NAS})")
        lan.cut("rack", "nas")
        began = time.monotonic()
        rack.reboot()
        attack.wait_for_containers(rack)
        record.figures["reboot until containers answer"] = f"{time.monotonic() - began:.0f} s"
        self._attack("after reboot")
        self._ask_floor("after reboot, the NAS away")
        lan.heal("rack", "nas")
        rack.wait_until_succeeds(f"timeout 60 ls {NAS}/models", timeout_seconds=300)
        record.check("the NAS is mounted again without intervention", True, rows=(16,))
        self.site.verify("after reboot")

    def _reload(self) -> None:
        rack = self.stage.rack
        rack.succeed("systemctl restart docker", timeout_seconds=300)
        attack.wait_for_containers(rack)
        self._expect_closed("a restart of Docker", self._attack("after docker restart", full=False))
        rack.succeed("ufw reload", timeout_seconds=120)
        self._expect_closed("ufw reload", self._attack("after ufw reload"))
        self._call("after ufw reload")

    def _lose(self) -> None:
        self.stage.wipe_rack()
        self._cut_power([self._step])

    def _rebuild(self) -> None:
        self.site.converge("rebuild", fatal=True)
        self.site.expect_nothing("after rebuild")

    def _restore_all(self) -> None:
        for repository in REPOSITORIES:
            after = self._restore(repository)
            same = bool(self._kept) and self._kept == after
            seen = f"{len(after.splitlines())} files"
            self.record.survived(
                "loss of the rack", f"every byte is back from {repository}", same, seen
            )

    def _verify_rebuilt(self) -> None:
        restored = f"/srv/restored-{REPOSITORIES[0]}{DATA}"
        self.stage.rack.succeed(f"cp -a {restored} {DATA}")
        self._publish()
        self.site.verify("after rebuild")
        self._ask_floor("after rebuild")

    def _sabotage(self) -> None:
        load_probe_image(self.stage.rack)
        sabotage.commit(self.site, self.stage.rack, sabotages.SITE)

    def _attack(self, when: str, full: bool = True) -> bool:
        """Scan the rack and call its containers; whether only what is declared answered."""
        neighbour, rack = self.stage.neighbour, self.stage.rack
        declared = [attack.DECLARED_PORT]
        cells: list[bool] = []
        if full:
            for ipv6, udp in ((False, False), (True, False), (False, True), (True, True)):
                name = (
                    f"{'UDP, top 100' if udp else 'TCP, all ports'}, {'IPv6' if ipv6 else 'IPv4'}"
                )
                expected = declared if not (ipv6 or udp) else []
                seen = attack.scan(
                    neighbour, udp=udp, ipv6=ipv6, known=expected, rate=self.packets_per_second
                )
                cells.append(self._cell(when, name, list(map(str, seen)), list(map(str, expected))))
        published = [f"{attack.RACK_V4}:{attack.DECLARED_PORT}"]
        found = attack.reach(neighbour, attack.container_addresses(rack))
        for name, seen_targets in found.items():
            wanted = published if name.endswith("IPv4") else []
            cells.append(self._cell(when, name, seen_targets, wanted))
        return all(cells)

    def _expect_closed(self, fault: str, closed: bool) -> None:
        state = "containers answer, and the LAN reaches only what is declared"
        self.record.survived(fault, state, closed)

    def _cell(self, when: str, path: str, seen: list[str], expected: list[str]) -> bool:
        extra = [item for item in seen if item not in expected]
        shown = ", ".join(seen) or "nothing"
        if expected and seen == expected:
            shown = f"nothing but the declared {', '.join(expected)}"
        self.record.attacked(when, path, shown)
        return self.record.check(
            f"{when}: {path}: only what is declared", not extra and seen == expected, shown
        )

    def _call(self, when: str) -> None:
        services, rack = self.stage.services, self.stage.rack
        told = services.headscale.check_policy(self.stage.policy())
        self.record.check(f"{when}: the control server confirms the policy's tests", not told, told)
        may = {services.tailnet: {22, 8080}, services.guest: {attack.VISITORS_PORT}}
        ports = sorted({*attack.PUBLISHED, attack.STRAY_PORT, *may[services.tailnet]})
        with attack.stray_listener(rack), ThreadPoolExecutor(len(may) * len(ports)) as pool:
            for peer, expected in may.items():
                seconds = dict.fromkeys(ports, self.silent_seconds)
                seconds |= dict.fromkeys(expected, ANSWER_SECONDS)
                calls = {
                    port: pool.submit(peer.answered, "rack", port, wait)
                    for port, wait in seconds.items()
                }
                seen = {port for port, call in calls.items() if call.result()}
                self._cell(
                    when,
                    f"tailnet, as {peer.hostname}",
                    [str(port) for port in sorted(seen)],
                    [str(port) for port in sorted(expected)],
                )

    def _ask_floor(self, when: str) -> None:
        tailnet = self.stage.services.tailnet
        url = f"http://{tailnet.addresses('rack')[0]}:8080/v1/chat/completions"
        question = {"messages": [{"role": "user", "content": "Are you there?"}], "max_tokens": 8}
        key = {"Authorization": f"Bearer {self.stage.secret('FLOOR_API_KEY')}"}
        began = time.monotonic()
        answer = self._post_until_up(url, question, key)
        seconds = time.monotonic() - began
        good = answer.status_code == 200 and bool(answer.json()["choices"])
        seen = f"HTTP {answer.status_code} in {seconds:.1f} s"
        self.record.check(f"{when}: the floor completes over the tailnet", good, seen, rows=(8, 13))
        refused = tailnet.post(url, json=question)
        self.record.check(
            f"{when}: the floor refuses a caller without a key",
            refused.status_code == 401,
            f"HTTP {refused.status_code}",
            rows=(13,),
        )

    def _post_until_up(
        self, url: str, question: dict[str, object], headers: dict[str, str]
    ) -> httpx.Response:
        deadline = time.monotonic() + 180
        while True:
            try:
                answer = self.stage.services.tailnet.post(url, json=question, headers=headers)
                if answer.status_code < 500 or time.monotonic() > deadline:
                    return answer
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1)

    def _mend(self) -> None:
        rack = self.stage.rack
        # Its watch would mend it sooner.
        rack.succeed(f"systemctl stop {TIMER} {WATCH} && ufw disable", timeout_seconds=120)
        self._expect_mended("after ufw disable", "Firewall")
        status = rack.succeed("ufw status", timeout_seconds=60)
        on = "Status: active" in status
        self.record.survived("ufw disable", "the next run turns the firewall on", on)

        unit = "/etc/systemd/system/holdfast-floor.service"
        original = rack.succeed(f"sha256sum {unit}")
        self._changed_since_last_look()
        rack.succeed(f"sed -i 's/^Restart=.*/Restart=no/' {unit}")
        told = self._changed_since_last_look()
        self.record.check("the journal names the edited unit", told == [unit], told)
        self._expect_mended("after a unit was edited", "Floor")
        same = rack.succeed(f"sha256sum {unit}") == original
        self.record.survived("an edited unit", "the next run makes it as declared", same)

        rack.succeed(
            sabotage.rewritten(DAEMON_JSON, "value |= {'shutdown-timeout': 21, 'ip': '0.0.0.0'}")
        )
        self._expect_mended("after daemon.json was edited", "Docker")
        daemon = rack.succeed(f"cat {DAEMON_JSON}")
        kept = '"shutdown-timeout": 21' in daemon
        self.record.check("the user's key in daemon.json survives", kept, "shutdown-timeout")
        ours = '"0.0.0.0"' not in daemon
        self.record.survived("an edited daemon.json", "the next run has our key back", ours)
        attack.wait_for_containers(rack)

    def _changed_since_last_look(self) -> list[str]:
        rack = self.stage.rack
        rack.start_unit(integrity.SERVICE, timeout_seconds=300)
        report = rack.succeed(
            "journalctl --output=cat --no-pager"
            f" _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {integrity.SERVICE})"
        )
        return re.findall(r"^[fdl][^:]*: (/\S+)$", report, re.MULTILINE)

    def _expect_mended(self, label: str, capability: str) -> None:
        outcome = self.site.converge(label)
        elsewhere = [name for name in outcome.changed if not name.startswith(f"{capability} | ")]
        self.record.check(
            f"converge ({label}) repairs {capability} and nothing else",
            bool(outcome.changed) and not elsewhere,
            outcome.changed,
        )

    def _keep_data(self) -> None:
        rack = self.stage.rack
        rack.succeed(
            f"mkdir {DATA}/notes && for i in $(seq 20);"
            f" do head -c 5000 /dev/urandom > {DATA}/notes/$i; done"
        )
        for repository in REPOSITORIES:
            began = time.monotonic()
            rack.start_unit(f"holdfast-backup@{repository}.service", timeout_seconds=900)
            took = f"{time.monotonic() - began:.0f} s"
            self.record.figures[f"backup to {repository}"] = took
        self._kept = self._digests(DATA)

    def _digests(self, folder: str) -> str:
        return self.stage.rack.succeed(
            f"cd {folder} && find . -type f -print0 | sort -z | xargs -0 sha256sum"
        )

    def _restore(self, repository: str) -> str:
        target = f"/srv/restored-{repository}"
        began = time.monotonic()
        self.stage.rack.succeed(f"holdfast-restore {repository} --to {target}", timeout_seconds=900)
        took = f"{time.monotonic() - began:.0f} s"
        self.record.figures[f"restore from {repository}"] = took
        return self._digests(f"{target}{DATA}")

    def _cut_power(self, steps: Sequence[str]) -> None:
        """Begin a converge and cut the power in each of these steps in turn."""
        rack, log = self.stage.rack, self.stage.logs / "converge-interrupted.log"
        for step in steps:
            run = start(self.site.inventory, log)
            try:
                reached = _wait_for_step(run, log, step)
                time.sleep(self._chance.uniform(0, WITHIN_SECONDS))
                rack.crash()
            finally:
                run.kill()
                run.wait()
            self.stage.power_on_rack()
            self.record.survived(f"a power cut in the step {step}", "the rack boots", reached)

    def _audit(self) -> None:
        score = audit.lynis(self.stage)
        self.record.figures["Lynis hardening index"] = str(score)
        self.record.check(
            f"Lynis index is at least {audit.LYNIS_AIM}", score >= audit.LYNIS_AIM, score
        )
        failures = audit.ssh_audit(self.stage)
        self.record.figures["ssh-audit failures"] = str(len(failures))
        self.record.check("ssh-audit finds no weak algorithm", not failures, "; ".join(failures))
