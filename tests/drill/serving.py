"""The drill of serving: a real vLLM, on a CPU, under the very units that a rack runs.

Under emulation an engine would start for a quarter of an hour. Its machine is therefore a systemd
container at the controller's own speed (`tests/lab/container_machine.py`), and the deploy is the
part of the site that such a machine can take.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

from holdfast.gpu import limits
from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION, rack
from tests.drill import engines, modes, sabotage, sabotages
from tests.drill.container_stage import ContainerStage
from tests.drill.converge import ROOT
from tests.drill.engines import CHECKPOINT, OTHER, Engines
from tests.drill.modes import Modes
from tests.drill.rehearsal import Act, Rehearsal
from tests.drill.site import Site, versions
from tests.lab.artefacts import archive, tiny_llama, vllm_cpu

FOLDER = ROOT / ".lab" / "serving"
DEPLOY = "tests/drill/serving_site.py"
JUDGED = frozenset({"test_services.py", "test_engines.py", "test_storage.py", "test_gpu_modes.py"})
"""Not the floor's: this machine enforces no memory limits."""
SECRETS = ("CHAT_KEY", "EMBED_KEY", "FLOOR_API_KEY")
EMBED: dict[str, object] = {"port": 8101, "task": "embed"}
VERSIONS = {
    "kernel": "uname -r",
    "systemd": "systemctl --version | head -n 1",
    "haproxy": "haproxy -v | head -n 1",
    "vllm": "ls /opt/holdfast/vllm/*/lib/python*/site-packages | grep -o '^vllm-.*dist-info'",
}


class ServingStage(ContainerStage):
    """A rack without emulation, and the site that its packages and models come from."""

    card_names = modes.NAMES

    def __init__(self, folder: Path = FOLDER) -> None:
        self.cards = rack("rtx3090", "rtx3090")
        self.wheels = vllm_cpu.build()
        super().__init__(
            folder,
            secrets=SECRETS,
            checkpoints={
                CHECKPOINT: tiny_llama.build().file(tiny_llama.FOLDER),
                OTHER: tiny_llama.build(tiny_llama.OTHER_SEED).file(tiny_llama.FOLDER),
            },
            served={"simple": self.wheels.file("simple")},
        )

    def raise_curtain(self) -> None:
        """Have two engines declared."""
        super().raise_curtain()
        self.declare([engines.declared("chat"), engines.declared("embed", **EMBED)])

    def change_engine(self, **changes: object) -> None:
        """Declare both engines, the first with these changes."""
        self.declare([engines.declared("chat", **changes), engines.declared("embed", **EMBED)])

    def declare_modes(self, engine: dict[str, object]) -> None:
        """Give the rack two cards and what takes turns on them, and declare it all."""
        folder = self.folder / "hardware"
        packed = folder.with_suffix(".tar")
        shutil.rmtree(folder, ignore_errors=True)
        guest.user_space(DRIVER_VERSION, folder)
        modes.lay_stand_ins(self.cards, folder)
        self.cards.write(folder / guest.DESCRIPTION.lstrip("/"))
        drop_in = folder / f"etc/systemd/system/{limits.SERVICE}.d/fake-driver.conf"
        drop_in.parent.mkdir()
        drop_in.write_text("[Service]\nReadWritePaths=/run/holdfast-rack\n")
        archive.pack(folder, packed, ".")
        self.rack.copy_to(packed, "/root/hardware.tar")
        self.rack.succeed(
            "tar -C / --keep-directory-symlink -xf /root/hardware.tar && ldconfig"
            " && systemd-tmpfiles --create && systemctl daemon-reload && nvidia-smi -pm 1"
        )
        cards = [
            {
                "name": name,
                "device": "2204",
                "vram_mib": 24576,
                "uuid": card.uuid,
                "power_cap_w": modes.CAP_W,
            }
            for name, card in zip(self.card_names, self.cards.cards, strict=True)
        ]
        gpus = {"cards": cards, "card_sets": [modes.card_set()], "containers": False}
        self.declare([engine], gpus=gpus, services=list(modes.services()))

    def declare(self, engines: list[dict[str, object]], **more: object) -> None:
        """Write the inventory, with these engines and what is declared beside them."""
        lock, packages = str(self.wheels.file("vllm.txt")), f"{self.site}/simple/"
        vllm = {"lock": lock, "packages": packages, "engines": engines}
        self.write_inventory(vllm=vllm, **more)


class ServingDrill(Rehearsal):
    """One pass over what Holdfast promises of its engines, on Debian 13."""

    kind = "native"
    stage: ServingStage
    engines: Engines
    modes: Modes

    def __init__(self) -> None:
        super().__init__("Holdfast drill of serving, Debian 13")

    def acts(self) -> Sequence[Act]:
        """Engines, then the modes that take turns with them."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a machine without emulation", lambda: self.stage.raise_curtain(), vital=True),
            Act("converge from nothing", self._converge_bare, vital=True, rows=(9,)),
            Act("converge again", self._converge_again, rows=(9,)),
            Act("verify", lambda: self.site.verify("after the first converge"), rows=(33,)),
            *engines.acts(lambda: self.engines),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reboot", self._reboot, vital=True, rows=(9,)),
            Act("take an engine away", self._take_away, rows=(9,)),
            Act("declare modes", self._declare_modes, vital=True, rows=(12,)),
            *modes.acts(lambda: self.modes, lambda: self.engines),
        )

    def _build(self) -> None:
        self.stage = ServingStage()
        os.environ["HOLDFAST_SECRETS"] = str(self.stage.folder)
        self.site = Site(self.record, self.stage.inventory, self.stage.logs, DEPLOY, JUDGED)
        self.engines = Engines(self.stage, self.site)
        self.modes = Modes(self.stage, self.site)

    def _converge_bare(self) -> None:
        self.site.converge("bare", fatal=True)

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.rack, VERSIONS)

    def _sabotage(self) -> None:
        mine = (
            *(*sabotages.MODELS, *sabotages.CHECKPOINTS, *sabotages.ENGINES, *sabotages.SERVICES),
        )
        sabotage.commit(self.site, self.stage.rack, mine)

    def _declare_modes(self) -> None:
        self.stage.declare_modes(engines.declared("chat", checkpoint=OTHER))
        self.site.converge("modes", fatal=True)
        self.site.expect_nothing("modes, again")

    def _reboot(self) -> None:
        began = time.monotonic()
        self.stage.rack.reboot()
        self.engines.wait_until_serving()
        took = f"{time.monotonic() - began:.0f} s"
        self.record.figures["reboot until every engine completes"] = took
        self.site.verify("after a reboot")

    def _take_away(self) -> None:
        rack, gone = self.stage.rack, self.engines.names()[-1]
        self.stage.declare([engines.declared("chat", checkpoint=OTHER)])
        self.site.converge("one engine less")
        left = rack.execute(
            f"ss -Hltn | grep ':{gone.engine.port} '; ls /etc/*/*/{gone.stem}*"
            f" {gone.configuration}* {gone.proxies}* {gone.job}*"
            "; pgrep --list-full --uid vllm-embed"
        )
        self.record.check("an engine that is no longer declared is gone", not left[1], left[1])
        self.site.expect_nothing("one engine less, again")
