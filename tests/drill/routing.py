"""The drill of routing: chains whose engines come and go, and a cloud that is never reached.

On a systemd container at the controller's own speed, as `serving.py`, with stand-ins for engines
and the real floor. Once it has its packages, the internet that the machine reaches is the lab's own
(`tests/lab/services/cloud.py`), where every packet is counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from tests.drill import personal, private, sabotage, sabotages
from tests.drill.container_stage import ContainerStage
from tests.drill.converge import ROOT
from tests.drill.personal import Personal
from tests.drill.private import Private
from tests.drill.rehearsal import Act, Rehearsal
from tests.drill.site import Site, versions
from tests.lab.artefacts import tiny_llama
from tests.lab.services.cloud import RESOLVERS, Cloud

FOLDER = ROOT / ".lab" / "routing"
DEPLOY = "tests/drill/routing_site.py"
JUDGED = frozenset({"test_router.py", "test_clouds.py", "test_ledger.py"})
SABOTAGES = tuple(
    each
    for each in (*sabotages.ROUTERS, *sabotages.CLOUDS)
    if {f"test_{test.partition('::')[0]}.py" for test in each.red} <= JUDGED
)
"""What only these judge: engines are stand-ins here, and are not services of ours."""
SECRETS = ("CHAT_KEY", "LEGAL_KEY", "WORK_KEY", "CLIENT_KEY", "FLOOR_API_KEY")
ENGINES = {"chat": 8100, "legal": 8101}
VERSIONS = {
    "kernel": "uname -r",
    "systemd": "systemctl --version | head -n 1",
    "haproxy": "haproxy -v | head -n 1",
    "sqlite": "python3 -c 'import sqlite3; print(sqlite3.sqlite_version)'",
}


class RoutingStage(ContainerStage):
    """A rack without emulation, its stand-in engines, and an internet with two clouds beside it."""

    def __init__(self, folder: Path = FOLDER, debian: int = 13) -> None:
        name = f"holdfast-cloud-{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
        self.cloud = Cloud(folder / "cloud", name)
        model = tiny_llama.build().file(tiny_llama.FOLDER)
        super().__init__(
            folder,
            secrets=(*SECRETS, *personal.SECRETS),
            checkpoints=dict.fromkeys(ENGINES, model),
            served=personal.index(debian),
            debian=debian,
            cables={"wan0": name},
        )

    def raise_curtain(self) -> None:
        """Have the engines ready to be started."""
        self.cloud.start()
        super().raise_curtain()
        # The base is not deployed here: it would look up time servers, and its packets would
        # be counted with those on trial.
        self.rack.execute("systemctl disable --now systemd-timesyncd")
        (self.folder / "cpu.txt").write_text("vllm==0.32.0+cpu --hash=sha256:00\n")
        self.rack.copy_to(ROOT / "tests/drill/stand_in_engine.py", "/opt/stand_in_engine.py")
        for name in ENGINES:
            kept = self.folder / "secrets" / f"{name.upper()}_KEY"
            self.rack.copy_to(kept, f"/root/{name.upper()}_KEY")

    def start_engines(self, names: Iterable[str] = ENGINES) -> None:
        """Have stand-ins answer; they do not outlive a boot."""
        for name in names:
            port = ENGINES[name]
            self.rack.succeed(
                f"systemd-run --quiet --collect --unit=stand-in-{name} python3"
                f" /opt/stand_in_engine.py {name} {port} /root/{name.upper()}_KEY"
                f" /root/{name}.asked"
                f" && until curl --silent http://127.0.0.1:{port}/health; do sleep 0.1; done"
            )

    def stop_engine(self, name: str) -> None:
        """Have one not answer."""
        self.rack.succeed(f"systemctl stop stand-in-{name} || true")

    def forget_asked(self, name: str) -> None:
        """Forget what an engine was asked."""
        self.rack.succeed(f"rm -f /root/{name}.asked")

    def asked(self, name: str) -> list[str]:
        """What an engine was asked since, in order."""
        return self.rack.succeed(f"cat /root/{name}.asked").splitlines()

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        super().lower_curtain()
        self.cloud.stop()

    def declare_routers(self, routers: list[dict[str, object]], **more: object) -> None:
        """Write the inventory, with these routers and what is declared beside them."""
        common = {"context_tokens": 256, "cache_mib": 1024, "memory_max_mib": 8192}
        engines = [
            {"name": name, "checkpoint": name, "port": port, "api_key": f"{name.upper()}_KEY"}
            | common
            for name, port in ENGINES.items()
        ]
        declared = {
            "interfaces": {"eth0": {"role": "management"}, "wan0": {"role": "lan"}},
            "docker": {
                "source": "distribution",
                "dns": [RESOLVERS[0]],
                "networks": [
                    {"name": "sealed", "tier": "T1", "subnets": ["fd99:8::/64"]},
                    private.OPEN_NETWORK,
                ],
            },
            "vllm": {"lock": str(self.folder / "cpu.txt"), "engines": engines},
            "routers": routers,
            "services": [private.PHOTOS_SERVICE],
        }
        self.write_inventory(**declared, **more)


class RoutingDrill(Rehearsal):
    """One pass over what Holdfast promises of its routers for private work."""

    kind = "native"
    stage: RoutingStage
    private: Private
    personal: Personal

    def __init__(self, debian: int = 13) -> None:
        super().__init__(f"Holdfast drill of routing, Debian {debian}")
        self.debian = debian

    def acts(self) -> Sequence[Act]:
        """Private work alone, of which nothing leaves, then work that may go on to a cloud."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a machine without emulation", self._boot, vital=True),
            Act("converge from nothing", self._converge_bare, vital=True, rows=(14,)),
            Act("converge again", self._converge_again, rows=(14,)),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            *private.acts(lambda: self.private),
            Act("reboot private work", self._reboot_private, rows=(14, 15)),
            *personal.acts(lambda: self.personal),
            Act("containers of two tiers", lambda: self.private.containers(), rows=(15,)),
            Act("what a router costs", lambda: self.private.latency(), rows=(14,)),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reboot", self._reboot, vital=True, rows=(14,)),
            Act("ask clouds after a reboot", lambda: self.personal.after_reboot(), rows=(14,)),
            Act("take a router away", lambda: self.private.take_away(), rows=(14,)),
        )

    def _build(self) -> None:
        self.stage = RoutingStage(debian=self.debian)
        os.environ["HOLDFAST_SECRETS"] = str(self.stage.folder)
        self.site = Site(self.record, self.stage.inventory, self.stage.logs, DEPLOY, JUDGED)
        routers = [private.WORK_ROUTER, private.CLIENT_ROUTER]
        self.private = Private(self.stage, self.site, routers)
        self.personal = Personal(self.stage, self.site, routers)

    def _boot(self) -> None:
        self.stage.raise_curtain()
        self.private.hand_over()
        self.personal.prepare()
        self.personal.declare(personal.routers())

    def _converge_bare(self) -> None:
        self.site.converge("bare", fatal=True)
        self.stage.cloud.become_the_internet_of(self.stage.rack)
        self.stage.start_engines()

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.rack, VERSIONS)

    def _reboot_private(self) -> None:
        with self.private.nothing_leaves("over a reboot"):
            self.stage.rack.reboot()
            self.stage.start_engines()
            self.private.wait_until_ready()
            self.site.verify("of private work, after a reboot")

    def _sabotage(self) -> None:
        sabotage.commit(self.site, self.stage.rack, SABOTAGES)

    def _reboot(self) -> None:
        self.stage.rack.reboot()
        self.stage.start_engines()
        self.private.wait_until_ready()
        self.site.verify("after a reboot")
