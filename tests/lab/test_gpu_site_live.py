"""The site on a fake rack of nine cards, on a real kernel and systemd: `pytest -m lab tests/lab`.

The driver comes from a repository of the lab's: a module that DKMS built for this very kernel and
drives nothing, and user space that answers for the rack's description (`tests/doubles`).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from holdfast.gpu import containers, limits
from tests.doubles import guest
from tests.doubles.rack import DRIVER_VERSION, KERNEL_TELLS, Rack, known
from tests.drill.converge import ROOT, Outcome, converge
from tests.lab import Lab
from tests.lab.artefacts import nvidia_repo
from tests.lab.machine import MANAGEMENT_HOST, Machine
from tests.lab.services.daemon import private_directory
from tests.lab.services.files import FileServer

pytestmark = pytest.mark.lab

CAP_W = 280
DESCRIPTION = "/etc/holdfast-rack.json"
LIMITS = "nvidia-smi --query-gpu=power.limit --format=csv,noheader,nounits"
ALL_CAPPED = f'[ "$({LIMITS} | sort | uniq -c | xargs)" = "9 {CAP_W}.00" ]'


@pytest.fixture(scope="module")
def cards() -> Rack:
    """Nine RTX 3090; which driver is loaded is asked of the kernel."""
    rack = known("rack9x3090")
    rack.driver.loaded = KERNEL_TELLS
    return rack


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, cards: Rack) -> Iterator[Lab]:
    folder = tmp_path_factory.mktemp("hardware")
    guest.hardware(cards, folder / "root")
    archive = folder / "hardware.tar"
    with tarfile.open(archive, "w") as tar:
        tar.add(folder / "root", arcname=".", filter=_owned_by_root)
    with Lab.create(tmp_path_factory.mktemp("lab"), machines=("rack",)) as lab:
        lab.start(warm=("rack",))
        lab.rack.copy_to(archive, "/root/hardware.tar")
        lab.rack.succeed(
            "tar -C / --keep-directory-symlink -xf /root/hardware.tar"
            # The machine boots from the initrd beside its disk, and this one is never made anew.
            " && rm /boot/initrd.img-*"
            " && udevadm control --reload && systemctl daemon-reload"
            " && systemctl start holdfast-rack-pci && apt-get update -qq",
            timeout_seconds=900,
        )
        yield lab


@pytest.fixture(scope="module")
def repositories(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, dict[str, object]]]:
    """Settings of the driver's repository and the toolkit's."""
    entry = nvidia_repo.build(lab.rack.image)
    names = (nvidia_repo.DRIVER, nvidia_repo.TOOLKIT)
    folder = private_directory(tmp_path_factory.mktemp("services"))
    files = FileServer(folder, {name: entry.file(name) for name in names})
    files.start()
    base = f"http://{MANAGEMENT_HOST}:{files.port}"
    yield {
        name: {
            "url": f"{base}/{name}",
            "key_url": f"{base}/{name}/{nvidia_repo.KEY}",
            "suite": nvidia_repo.CODENAME,
            "components": ["main"],
        }
        for name in names
    }
    files.stop()


@pytest.fixture(scope="module")
def inventory(
    lab: Lab,
    cards: Rack,
    repositories: dict[str, dict[str, object]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """What the rack is to be."""
    folder = tmp_path_factory.mktemp("site")
    declared = [
        {
            "name": f"shelf-{number}",
            "device": "2204",
            "vram_mib": 24576,
            "uuid": card.uuid,
            "pci_address": card.address,
            "power_cap_w": CAP_W,
        }
        for number, card in enumerate(cards.cards, start=1)
    ]
    settings = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
        "lan_address": "rack-lan",
        "ssh_hostname": "rack-lan",
        "ssh_config_file": str(lab.directory / "ssh_config"),
        "ssh_user": "operator",
        "_sudo": True,
        "firewall": {"rollback_seconds": 300},
        "docker": {"source": "distribution"},
        "tailnet": None,
        "ssh": {"lan_access": "keep", "lan_sources": ["10.0.2.0/24"]},
        "gpus": {
            "cards": declared,
            "driver": {
                "branch": DRIVER_VERSION.partition(".")[0],
                "source": "vendor",
                "repository": repositories[nvidia_repo.DRIVER],
            },
            "container_toolkit_repository": repositories[nvidia_repo.TOOLKIT],
        },
    }
    inventory = folder / "inventory.py"
    inventory.write_text(f"hosts = [('@rack/rack', {settings!r})]\n")
    return inventory


@pytest.fixture(scope="module")
def deploy(inventory: Path) -> Callable[[str], Outcome]:
    """Run the site on the rack; takes a label for the log."""
    return lambda label: converge(inventory, label, inventory.parent)


def _owned_by_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = "root"
    return member


def test_a_bare_rack_has_its_driver_after_one_reboot_and_a_second_run_changes_nothing(
    lab: Lab, deploy: Callable[[str], Outcome]
) -> None:
    first = deploy("bare")
    assert first.ok, first.failed
    assert first.log.read_text().count("rebooting this host once") == 1
    assert lab.rack.succeed("cat /sys/module/nvidia/version").strip() == DRIVER_VERSION
    lab.rack.succeed(ALL_CAPPED, timeout_seconds=120)
    second = deploy("again")
    assert (second.ok, second.changed) == (True, [])


def test_the_host_tests_about_cards_hold(inventory: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests/host/test_gpu.py", "--inventory", str(inventory)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    assert " passed" in done.stdout


def test_containers_are_told_of_every_card(lab: Lab, cards: Rack) -> None:
    specified = lab.rack.succeed(f"cat {containers.SPECIFICATION}")
    assert [card.uuid for card in cards.cards if card.uuid not in specified] == []
    assert "nvidia" in json.loads(
        lab.rack.succeed("docker info --format '{{json .Runtimes}}'", timeout_seconds=120)
    )


def test_caps_are_back_by_themselves_after_the_driver_was_reloaded(lab: Lab) -> None:
    # As on real cards: what keeps the driver in place must let go of it, and brings it back.
    lab.rack.succeed(
        "systemctl stop nvidia-persistenced && modprobe -r nvidia && modprobe nvidia",
        timeout_seconds=120,
    )
    lab.rack.fail(ALL_CAPPED, timeout_seconds=120)
    lab.rack.succeed("systemctl start nvidia-persistenced", timeout_seconds=120)
    lab.rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=300)


def test_caps_are_back_after_a_reboot(lab: Lab) -> None:
    lab.rack.reboot()
    lab.rack.wait_until_succeeds(ALL_CAPPED, timeout_seconds=400)
    assert _result(lab.rack) == "success"


def test_a_card_that_vanishes_is_told_by_the_unit_and_by_the_next_run(
    lab: Lab, deploy: Callable[[str], Outcome]
) -> None:
    rack = lab.rack
    description = json.loads(rack.succeed(f"cat {DESCRIPTION}"))
    description["cards"][3]["state"] = "lost"
    rack.succeed(
        f"cat > {DESCRIPTION}.new <<'END' && mv {DESCRIPTION}.new {DESCRIPTION}\n"
        f"{json.dumps(description)}\nEND"
    )
    rack.succeed("echo 'kernel: NVRM: Xid (PCI:0000:44:00): 79, pid=1' > /dev/kmsg")
    rack.wait_until_succeeds(f"systemctl is-failed {limits.SERVICE}", timeout_seconds=300)
    said = rack.succeed(f"journalctl --boot --output=cat --unit={limits.SERVICE}")
    assert "shelf-4" in said
    assert "is gone" in said
    outcome = deploy("sick")
    assert not outcome.ok
    assert "shelf-4 fell off the bus in this boot (Xid 79" in outcome.log.read_text()


def _result(rack: Machine) -> str:
    return rack.succeed(f"systemctl show --property=Result --value {limits.SERVICE}").strip()
