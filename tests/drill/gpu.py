"""The drill of the cards: a rack is given nine, has them driven and capped, and loses one.

The cards are doubles (`tests/doubles`) on a real kernel and systemd. The driver comes from a
repository of the lab's: a module that DKMS built for this very kernel and that drives nothing, and
user space that answers for the rack's description.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from holdfast.gpu import containers, limits
from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION, KERNEL_TELLS, known
from tests.drill import sabotage, sabotages
from tests.drill.converge import ROOT
from tests.drill.rehearsal import Act, Rehearsal, Scenery, load_probe_image
from tests.drill.site import Site, versions
from tests.lab.artefacts import archive, container, nvidia_open, nvidia_repo
from tests.lab.lab import Lab
from tests.lab.machine import MANAGEMENT_HOST
from tests.lab.services.daemon import private_directory
from tests.lab.services.files import FileServer

FOLDER = ROOT / ".lab" / "gpu"
CAP_W = 280
VANISHING = 3
"""Index of the card that falls off the bus."""
LIMITS = "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits"
ALL_CAPPED = f'[ "$({LIMITS} | sort | uniq -c | xargs)" = "9 {CAP_W}.00" ]'
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
    def machines(self) -> Lab:
        """The lab's."""
        return self.lab

    def raise_curtain(self) -> None:
        """Start the file server and the rack, put its cards in, and write the inventory."""
        self.files.start()
        # It is the cards' driver that is on trial here, and not the boot of a bare machine.
        self.lab.start(warm=("rack",))
        hardware, packed = self.folder / "hardware", self.folder / "hardware.tar"
        shutil.rmtree(hardware, ignore_errors=True)
        guest.hardware(self.cards, hardware)
        archive.pack(hardware, packed, ".")
        self.lab.rack.copy_to(packed, "/root/hardware.tar")
        self.lab.rack.succeed(
            "tar -C / --keep-directory-symlink -xf /root/hardware.tar"
            # The machine boots from the initrd beside its disk, and this one is never made anew.
            " && rm /boot/initrd.img-*"
            " && udevadm control --reload && systemctl daemon-reload"
            " && systemctl start holdfast-rack-pci && apt-get update -qq",
            timeout_seconds=900,
        )
        self.inventory.write_text(f"hosts = [('@rack/rack', {self._settings()!r})]\n")

    def lower_curtain(self) -> None:
        """Stop everything; logs and disks stay for a look."""
        self.lab.power_off()
        self.files.stop()

    def describe(self) -> None:
        """Make the rack's hardware what its cards are now."""
        text, path = self.cards.model_dump_json(indent=1), guest.DESCRIPTION
        self.lab.rack.succeed(f"cat > {path}.new <<'END' && mv {path}.new {path}\n{text}\nEND")

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
        url = f"http://{MANAGEMENT_HOST}:{self.files.port}/{name}"
        return {
            "url": url,
            "key_url": f"{url}/{nvidia_repo.KEY}",
            "suite": nvidia_repo.CODENAME,
            "components": ["main"],
        }


def name_of(index: int) -> str:
    """What the inventory calls a card."""
    return f"shelf-{index + 1}"


class GpuDrill(Rehearsal):
    """One pass over what Holdfast promises about cards, on Debian 13."""

    kind = "virtual"
    stage: GpuStage

    def __init__(self) -> None:
        super().__init__("Holdfast drill of the cards, Debian 13")

    def acts(self) -> Sequence[Act]:
        """Drive the cards, hand them out, and lose one."""
        return (
            Act("build images and artefacts", self._build, vital=True),
            Act("boot a rack with nine cards", lambda: self.stage.raise_curtain(), vital=True),
            Act("try NVIDIA's own module", self._try_nvidias_own_module, rows=(2,)),
            Act("converge a bare machine", self._converge_bare, vital=True, rows=(2,)),
            Act("converge again", self._converge_again, rows=(2, 4, 5)),
            Act("give a container its card", self._give_a_container_its_card, rows=(5,)),
            Act("sabotage", self._sabotage, rows=(34,)),
            Act("reload the driver", self._reload, rows=(4,)),
            Act("reboot", self._reboot, rows=(4,)),
            Act("lose a card", self._lose_a_card, rows=(3,)),
        )

    def _build(self) -> None:
        self.stage = GpuStage()
        self.site = Site(self.record, self.stage.inventory, self.stage.logs)

    def _converge_again(self) -> None:
        self.site.expect_nothing("again")
        self.record.versions |= versions(self.stage.lab.rack, VERSIONS)

    def _sabotage(self) -> None:
        sabotage.commit(self.site, self.stage.lab.rack, sabotages.CARDS)

    def _reboot(self) -> None:
        self.stage.lab.rack.reboot()
        self._expect_caps("after a reboot")

    def _try_nvidias_own_module(self) -> None:
        rack = self.stage.lab.rack
        built = nvidia_open.build(rack.image)
        (module,) = built.directory.glob(f"{nvidia_open.MODULE}.ko*")
        rack.copy_to(module, f"/root/{module.name}")
        # A module of another kernel would be refused before it had looked for a card.
        refused = rack.run(f"insmod /root/{module.name}").stderr.strip()
        looked = "No NVIDIA GPU found" in rack.succeed("dmesg")
        self.record.versions["NVIDIA's own module"] = built.version
        self.record.check(
            "NVIDIA's own open module, built by DKMS for this kernel, is taken and finds no card",
            "No such device" in refused and looked,
            refused,
        )

    def _converge_bare(self) -> None:
        rack, record = self.stage.lab.rack, self.record
        outcome = self.site.converge("bare", fatal=True)
        announced = outcome.log.read_text().count("rebooting this host once")
        record.check("the rack was rebooted once, and said so", announced == 1, announced)
        loaded = rack.succeed("cat /sys/module/nvidia/version").strip()
        record.check("the driver that was installed is loaded", loaded == DRIVER_VERSION, loaded)
        self._expect_caps("after the first converge")

    def _expect_caps(self, when: str) -> None:
        rack = self.stage.lab.rack
        rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=400)
        result = rack.succeed(f"systemctl show --property=Result --value {limits.SERVICE}").strip()
        self.record.check(f"nine caps of {CAP_W} W {when}", result == "success", result, rows=(4,))

    def _give_a_container_its_card(self) -> None:
        rack, uuid = self.stage.lab.rack, self.stage.cards.cards[0].uuid
        specified = rack.succeed(f"cat {containers.SPECIFICATION}")
        missing = [card.uuid for card in self.stage.cards.cards if card.uuid not in specified]
        self.record.check("the CDI specification names every card", not missing, missing)
        load_probe_image(rack)
        told = rack.succeed(
            f"docker run --rm --device nvidia.com/gpu={uuid} {container.IMAGE} /bin/busybox env",
            timeout_seconds=300,
        )
        given = [line for line in told.splitlines() if line.startswith("HOLDFAST_CARD=")]
        self.record.check(
            "a container is given the card it asks for", given == [f"HOLDFAST_CARD={uuid}"], given
        )

    def _reload(self) -> None:
        rack = self.stage.lab.rack
        # As on real cards: what keeps the driver in place must let go of it, and brings it back.
        rack.succeed(
            "systemctl stop nvidia-persistenced && modprobe -r nvidia && modprobe nvidia",
            timeout_seconds=120,
        )
        lost = rack.execute(ALL_CAPPED, timeout_seconds=120)[0] != 0
        self.record.check("a driver that is loaded anew has forgotten the caps", lost)
        rack.succeed("systemctl start nvidia-persistenced", timeout_seconds=120)
        self._expect_caps("by themselves after the driver was loaded anew")

    def _lose_a_card(self) -> None:
        rack, record, name = self.stage.lab.rack, self.record, name_of(VANISHING)
        lost = self.stage.cards.cards[VANISHING]
        lost.state = "lost"
        self.stage.describe()
        bus = lost.address.rpartition(".")[0]
        rack.succeed(f"echo 'kernel: NVRM: Xid (PCI:{bus}): 79, pid=1' > /dev/kmsg")
        rack.wait_until_succeeds(f"systemctl is-failed {limits.SERVICE}", timeout_seconds=300)
        said = rack.succeed(f"systemctl status --full --no-pager --lines=20 {limits.SERVICE}; true")
        told = name in said and "is gone" in said
        record.check("the unit's status names the card that is gone", told, name)
        # Something that a run mends, if it comes so far.
        rack.succeed(f"rm {containers.SPECIFICATION}")
        outcome = self.site.deploy("sick")
        sentence = f"{name} fell off the bus in this boot (Xid 79"
        stopped = not outcome.ok and sentence in outcome.log.read_text()
        record.check("the next run stops and says why", stopped, sentence)
        untouched = rack.execute(f"test -e {containers.SPECIFICATION}")[0] != 0
        record.check("and touches nothing that relies on cards", untouched)
