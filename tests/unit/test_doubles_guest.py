"""What is laid out for a virtual machine has the form that a driver's packages give it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from tests.doubles import guest
from tests.doubles.rack import KERNEL_TELLS, Rack, known, rack
from tests.doubles.sysfs import sysfs

PCI = Path(__file__).parents[1] / "doubles" / "boot" / "lab-rack-pci"
DRIVER = "../../../../bus/pci/drivers/nvidia"


def test_a_guest_has_hardware_user_space_and_module(tmp_path: Path) -> None:
    guest.guest(known("dualstack"), tmp_path)
    library = tmp_path / "usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"
    assert library.resolve().name == "libnvidia-ml.so.580.95.05"
    assert library.resolve().read_bytes()[:4] == b"\x7fELF"
    smi = tmp_path / "usr/bin/nvidia-smi"
    real = tmp_path / str(smi.readlink()).lstrip("/")
    assert os.access(real, os.X_OK)
    assert real.with_name("pynvml.py").exists()
    described = json.loads((tmp_path / "etc/holdfast-rack.json").read_text())
    assert [card["device"] for card in described["cards"]] == ["2b85", "2504"]
    assert sorted(path.name for path in (tmp_path / "usr/share/holdfast-rack/sysfs").iterdir()) == [
        "0000:41:00.0",
        "0000:41:00.1",
        "0000:42:00.0",
        "0000:42:00.1",
    ]
    dkms = (tmp_path / "usr/src/nvidia-580.95.05/dkms.conf").read_text()
    assert 'PACKAGE_VERSION="580.95.05"' in dkms
    wanted = tmp_path / "etc/systemd/system/sysinit.target.wants/lab-rack-pci.service"
    assert wanted.resolve().is_file()


def test_nvidia_smi_finds_the_bindings_that_lie_beside_it(tmp_path: Path) -> None:
    guest.user_space("580.95.05", tmp_path)
    program = tmp_path / str((tmp_path / "usr/bin/nvidia-smi").readlink()).lstrip("/")
    link = tmp_path / "nvidia-smi"
    link.symlink_to(program)
    rack("rtx3060").write(tmp_path / "rack.json")
    done = subprocess.run(
        # -S: without any site-packages, as a guest is.
        ["python3", "-S", str(link), "--query-gpu=name", "--format=csv,noheader"],
        env={
            "PATH": os.environ["PATH"],
            "LD_LIBRARY_PATH": str(tmp_path / "usr/lib/x86_64-linux-gnu"),
            "HOLDFAST_RACK": str(tmp_path / "rack.json"),
            "HOLDFAST_RACK_STATE": str(tmp_path / "state"),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == "NVIDIA GeForce RTX 3060\n", done.stderr


def test_sysfs_has_what_the_kernel_shows_of_a_card(tmp_path: Path) -> None:
    machine = known("dualstack")
    machine.cards[0].boot_vga = True
    sysfs(machine, tmp_path)
    card = tmp_path / "0000:41:00.0"
    assert {
        file.name: file.read_text().split("\n")[0] for file in card.iterdir() if file.is_file()
    } == {
        "vendor": "0x10de",
        "device": "0x2b85",
        "class": "0x030000",
        "subsystem_vendor": "0x1569",
        "subsystem_device": "0xf318",
        "current_link_speed": "2.5 GT/s PCIe",
        "max_link_speed": "32.0 GT/s PCIe",
        "current_link_width": "16",
        "max_link_width": "16",
        "numa_node": "-1",
        "boot_vga": "1",
        "aer_dev_correctable": "RxErr 0",
        "aer_dev_nonfatal": "Undefined 0",
        "aer_dev_fatal": "Undefined 0",
    }
    assert str((card / "driver").readlink()) == DRIVER
    assert (card / "iommu_group").readlink().name == "20"


def test_a_lost_card_stays_in_sysfs_and_one_that_is_gone_does_not(tmp_path: Path) -> None:
    machine = rack("rtx3090", "rtx3090")
    machine.cards[0].state, machine.cards[1].state = "lost", "gone"
    sysfs(machine, tmp_path)
    assert not (tmp_path / "0000:42:00.0").exists()
    assert (tmp_path / "0000:41:00.0/current_link_width").read_text() == "63\n"


def test_cards_are_bound_when_the_module_comes_and_freed_when_it_goes(tmp_path: Path) -> None:
    machine = rack("rtx3090", "rtx3090")
    machine.driver.loaded = KERNEL_TELLS
    machine.cards[1].driver = "vfio-pci"
    shown = lay(machine, tmp_path)
    ours, given_away = shown / "0000:41:00.0/driver", shown / "0000:42:00.0/driver"
    assert not ours.is_symlink()
    pci(tmp_path, "bind")
    assert str(ours.readlink()) == DRIVER
    assert not (shown / "0000:41:00.1/driver").is_symlink()
    pci(tmp_path, "unbind")
    assert not ours.is_symlink()
    assert given_away.readlink().name == "vfio-pci"


def test_a_card_that_was_taken_out_is_not_bound(tmp_path: Path) -> None:
    machine = rack("rtx3090", "rtx3090")
    machine.driver.loaded = KERNEL_TELLS
    shown = lay(machine, tmp_path)
    subprocess.run(["rm", "-r", str(shown / "0000:42:00.0")], check=True)
    pci(tmp_path, "bind")
    assert (shown / "0000:41:00.0/driver").is_symlink()
    assert not (shown / "0000:42:00.0").exists()


def test_the_machines_own_devices_stay_in_sight(tmp_path: Path) -> None:
    own = tmp_path / "devices/0000:00:01.0"
    own.mkdir(parents=True)
    (own / "vendor").write_text("0x1af4\n")
    shown = lay(rack("rtx3090"), tmp_path)
    assert (shown / "0000:00:01.0/vendor").read_text() == "0x1af4\n"
    assert (shown / "0000:41:00.0/vendor").read_text() == "0x10de\n"


def lay(machine: Rack, folder: Path) -> Path:
    """What /sys/bus/pci/devices shows after boot; the mount itself takes a guest."""
    sysfs(machine, folder / "sysfs")
    (folder / "devices").mkdir(exist_ok=True)
    programs = folder / "programs"
    programs.mkdir()
    (programs / "mount").write_text("#!/bin/sh\n")
    (programs / "mount").chmod(0o755)
    pci(folder, "lay")
    return folder / "shown"


def pci(folder: Path, verb: str) -> None:
    """Run what systemd and udev run in a guest."""
    subprocess.run(
        [str(PCI), verb],
        env={
            "PATH": f"{folder / 'programs'}:{os.environ['PATH']}",
            "HOLDFAST_RACK_SYSFS": str(folder / "sysfs"),
            "HOLDFAST_RACK_SHOWN": str(folder / "shown"),
            "HOLDFAST_RACK_DEVICES": str(folder / "devices"),
        },
        check=True,
    )
