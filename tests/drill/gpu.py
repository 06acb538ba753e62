"""The drill of the cards: a rack is given nine, has them driven and capped, and loses one.

The cards are doubles (`tests/doubles`) on a real kernel and systemd. The driver comes from a
repository of the lab's: a module that DKMS built for this very kernel and that drives nothing, and
user space that answers for the rack's description.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION, KERNEL_TELLS, known
from tests.drill import cards, sabotage, sabotages
from tests.drill.cards import ALL_CAPPED, CAP_W, Cards
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Act, Rehearsal, Scenery
from tests.drill.site import Site, versions
from tests.lab.artefacts import archive, nvidia_open, nvidia_repo
from tests.lab.lab import Lab
from tests.lab.machine import MANAGEMENT_HOST, Machine
from tests.lab.services.daemon import private_directory
from tests.lab.services.files import FileServer

FOLDER = ROOT / ".lab" / "gpu"
VERSIONS = {
    "kernel": "uname -r",
    "docker": "docker --version",
    "driver (a stand-in)": "cat /sys/module/nvidia/version",
    "systemd": "systemctl --version | head -n 1",
}


class GpuStage(Scenery):
    """A rack with nine RTX 3090, and the repositories its driver comes from."""

    def __init__(self, folder: Path = FOLDER) -> None:
        super().__init__(folder)
        self.cards = known("rack9x3090")
        self.cards.driver.loaded = KERNEL_TELLS
        self.lab = Lab.create(folder / "machines", machines=("rack",))
        self.repositories = nvidia_repo.build(self.lab.rack.image)
        self.files = FileServer(
            private_directory(folder / "services"),
            {name: self.repositories.file(name) for name in self._repository_names()},
        )

    @staticmethod
    def _repository_names() -> tuple[str, str]:
        return nvidia_repo.DRIVER, nvidia_repo.TOOLKIT

    @property
    def inventory(self) -> Path:
        """What the rack is to be."""
        return self.folder / "inventory.py"

    @property
    def rack(self) -> Machine:
        """The lab's."""
        return self.lab.rack

    @property
    def card_names(self) -> tuple[str, ...]:
        """What the inventory calls its cards."""
        return tuple(map(name_of, range(len(self.cards.cards))))

    @property
    def machines(self) -> Lab:
        """The lab's repository."""
        return self.lab

    def raise_curtain(self) -> None:
        """Start the file server and the rack, insert its cards, and write the inventory."""
        self.files.start()
        # This drill tests the driver of the cards, not the boot of a bare machine.
        self.lab.start(warm=("rack",))
        hardware, packed = self.folder / "hardware", self.folder / "hardware.tar"
        shutil.rmtree(hardware, ignore_errors=True)
        guest.hardware(self.cards, hardware)
        archive.pack(hardware, packed, ".")
        self.lab.rack.copy_to(packed, "/root/hardware.tar")
        self.lab.rack.succeed(
            "tar -C / --keep-directory-symlink -xf /root/hardware.tar"
            # The machine boots from the initrd beside its disk, and this one is never made again.
            " && rm /boot/initrd.img-*"
            " && udevadm control --reload && systemctl daemon-reload"
            " && systemctl start lab-rack-pci && apt-get update -qq",
            timeout_seconds=900,
        )
        self.inventory.write_text(f"hosts = [('@rack/rack', {self._settings()!r})]\n")

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for inspection."""
        self.lab.power_off()
        self.files.stop()

    def describe(self) -> None:
        """Make the rack's hardware what its cards are now."""
        self.lab.rack.succeed(guest.describing(self.cards.model_dump_json(indent=1)))

    def _settings(self) -> dict[str, object]:
        driver, toolkit = map(self._repository, self._repository_names())
        return {
            "hostname": "rack",
            "distribution": "debian13",
            "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
            "lan_address": "rack-lan",
            "ssh_hostname": "rack-lan",
            "ssh_config_file": str(self.lab.directory / "ssh_config"),
            "ssh_user": "operator",
            "_sudo": True,
            "firewall": {"rollback_seconds": 300},
            "docker": {"source": "distribution"},
            "tailnet": None,
            "ssh": {"lan_access": "keep", "lan_sources": ["10.0.2.0/24"]},
            "gpus": {
                "cards": [
                    {
                        "name": name_of(index),
                        "device": "2204",
                        "vram_mib": 24576,
                        "uuid": card.uuid,
                        "pci_address": card.address,
                        "power_cap_w": CAP_W,
                    }
                    for index, card in enumerate(self.cards.cards)
                ],
                "driver": {
                    "branch": DRIVER_VERSION.partition(".")[0],
                    "source": "vendor",
                    "repository": driver,
                },
                "container_toolkit_repository": toolkit,
            },
        }

    def _repository(self, name: str) -> dict[str, object]:
        return nvidia_repo.declared(f"http://{MANAGEMENT_HOST}:{self.files.port}/{name}")


def name_of(index: int) -> str:
    """What the inventory calls a card."""
    return f"shelf-{index + 1}"


class GpuDrill(Rehearsal):
    """One pass over Holdfast's promises about cards, on Debian 13."""

    kind = "virtual"
    stage: GpuStage
    tried: Cards

    def __init__(self) -> None:
        super().__init__("Holdfast drill of the cards, Debian 13")

    def acts(self) -> Sequence[Act]:
        """Install the driver, pass cards to containers, and lose a card."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a rack with nine cards", lambda: self.stage.raise_curtain(), vital=True),
            Act("try NVIDIA's own module", self._try_nvidias_own_module, rows=(2,)),
            Act("converge a bare machine", self._converge_bare, vital=True, rows=(2,)),
            Act("converge again", self._converge_again, rows=(2, 4, 5)),
            *cards.acts(lambda: self.tried),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reload the driver", self._reload, rows=(4,)),
            Act("reboot", self._reboot, rows=(4,)),
            Act("lose a card", lambda: self.tried.lose_one(), rows=(3,)),
        )

    def _build(self) -> None:
        self.stage = GpuStage()
        self.site = Site(self.record, self.stage.inventory, self.stage.logs)
        self.tried = Cards(self.stage, self.site)

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.lab.rack, VERSIONS)

    def _sabotage(self) -> None:
        sabotage.commit(self.site, self.stage.lab.rack, sabotages.CARDS)

    def _reboot(self) -> None:
        self.stage.lab.rack.reboot()
        self.tried.expect_caps("after a reboot")

    def _try_nvidias_own_module(self) -> None:
        rack = self.stage.lab.rack
        built = nvidia_open.build(rack.image)
        (module,) = built.directory.glob(f"{nvidia_open.MODULE}.ko*")
        rack.copy_to(module, f"/root/{module.name}")
        # A module for another kernel would be refused before it looked for a card.
        refused = rack.run(f"insmod /root/{module.name}").stderr.strip()
        looked = "No NVIDIA GPU found" in rack.succeed("dmesg")
        self.record.versions["NVIDIA's own module"] = built.version
        self.record.check(
            "NVIDIA's own open module, built by DKMS for this kernel, loads and finds no card",
            "No such device" in refused and looked,
            refused,
        )

    def _converge_bare(self) -> None:
        rack, record = self.stage.lab.rack, self.record
        outcome = self.site.converge("bare", fatal=True)
        announced = outcome.log.read_text().count("rebooting this host once")
        record.check("the rack was rebooted once, as announced", announced == 1, announced)
        loaded = rack.succeed("cat /sys/module/nvidia/version").strip()
        record.check("the installed driver is loaded", loaded == DRIVER_VERSION, loaded)
        self.tried.expect_caps("after the first converge")

    def _reload(self) -> None:
        rack = self.stage.lab.rack
        # As on real cards: what keeps the driver in place must let go of it, and brings it back.
        rack.succeed(
            "systemctl stop nvidia-persistenced && modprobe -r nvidia && modprobe nvidia",
            timeout_seconds=120,
        )
        lost = rack.execute(ALL_CAPPED, timeout_seconds=120)[0] != 0
        self.record.check("a reloaded driver has lost the caps", lost)
        rack.succeed("systemctl start nvidia-persistenced", timeout_seconds=120)
        self.tried.expect_caps("by themselves after the driver was loaded anew")
