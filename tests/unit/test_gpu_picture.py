"""What the facts' own shell command sees on recorded racks, and on the same racks made sick."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from facts.gpu_picture import BusErrors, DriverState, PciCard, Picture, Xid, address_of, parse
from tests.unit.gpu_racks import (
    SMI_EXIT,
    SMI_HANGS,
    SMI_SAYS,
    Rack,
    RackName,
    lay_out,
    place_program,
    recorded,
)

BOOT = "0f6a2b1c7d3e4c598a105b2f9e6d4c31"
KERNEL_3060 = "6.8.0-60-generic"


@pytest.fixture
def rtx3060(tmp_path: Path) -> Rack:
    return lay_out("rtx3060", tmp_path)


@pytest.fixture
def nine(tmp_path: Path) -> Rack:
    return lay_out("rack9x3090", tmp_path)


def test_a_single_card_in_full() -> None:
    picture = recorded("rtx3060")
    assert picture.pci == (
        PciCard(
            address="0000:2d:00.0",
            device="2487",
            subsystem="3842:3658",
            link_width=16,
            link_width_max=16,
            link_speed=2.5,
            link_speed_max=16.0,
            iommu_group=20,
            numa_node=-1,
            driver="nvidia",
            boot_vga=False,
        ),
    )
    assert picture.smi is not None
    (card,) = picture.smi
    assert (card.index, card.name, card.address) == (0, "NVIDIA GeForce RTX 3060", "0000:2d:00.0")
    assert card.uuid.startswith("GPU-")
    assert (card.device, card.vbios, card.compute_capability) == ("2487", "94.04.71.00.69", "8.6")
    assert (card.link_generation, card.link_generation_max, card.link_width) == (1, 4, 16)
    assert (card.power_limit_w, card.power_default_w) == (170.0, 170.0)
    assert (card.power_min_w, card.power_max_w) == (100.0, 190.0)
    assert (card.memory_total_mib, card.memory_used_mib) == (12288, 116)
    assert (card.persistence, card.display_active) == (True, False)
    assert (card.ecc, card.mig, card.remapped_rows_pending) == (None, None, None)
    assert (card.recovery_action, card.throttle) == ("None", 1)
    assert picture.driver == DriverState(
        loaded="570.124.04",
        loaded_flavour="open",
        on_disk="570.124.04",
        on_disk_flavour="open",
        library="570.124.04",
        running_kernel=KERNEL_3060,
        newest_kernel=KERNEL_3060,
        nouveau_loaded=False,
        secure_boot=False,
    )
    assert picture.bus_errors == (BusErrors("0000:2d:00.0", 0, 0, 0),)
    assert (picture.smi_exit, picture.smi_said) == (0, "")
    assert (picture.xids, picture.links, picture.nvswitches) == ((), (), 0)


@pytest.mark.parametrize(
    ("name", "cards", "links", "nvswitches"),
    [
        ("rtx3060", 1, 0, 0),
        ("rack9x3090", 9, 36, 0),
        ("rtx5090", 1, 0, 0),
        ("hgx8xh100", 8, 28, 4),
        ("h200", 1, 0, 0),
    ],
)
def test_every_card_is_seen_on_the_bus_and_by_the_driver(
    name: RackName, cards: int, links: int, nvswitches: int
) -> None:
    picture = recorded(name)
    assert picture.smi is not None
    assert len(picture.pci) == cards
    assert [card.address for card in picture.smi] == [card.address for card in picture.pci]
    assert [card.device for card in picture.smi] == [card.device for card in picture.pci]
    assert (len(picture.links), picture.nvswitches) == (links, nvswitches)


def test_what_data_centre_cards_know_and_others_do_not() -> None:
    (h200,) = recorded("h200").smi or ()
    assert (h200.ecc, h200.mig) == (True, False)
    assert (h200.remapped_rows_pending, h200.remapped_rows_failed) == (False, False)
    assert h200.recovery_action is None


def test_links_name_both_cards() -> None:
    links = recorded("rack9x3090").links
    assert ("0000:21:00.0", "0000:22:00.0", "PHB") in links
    assert ("0000:01:00.0", "0000:a1:00.0", "NODE") in links
    assert {kind for *_, kind in recorded("hgx8xh100").links} == {"NV18"}


def test_a_machine_without_anything_of_nvidia_s(tmp_path: Path) -> None:
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's driver")
    picture = lay_out(None, tmp_path).picture()
    assert replace(picture, driver=DriverState()) == Picture()
    assert picture.driver.loaded is None
    assert parse({}) == Picture()


def test_a_card_before_any_driver(rtx3060: Rack) -> None:
    (rtx3060.programs / "nvidia-smi").unlink()
    (rtx3060.device("0000:2d:00.0") / "driver").unlink()
    shutil.rmtree(rtx3060.root / "sys/module")
    shutil.rmtree(rtx3060.root / "proc/driver")
    shutil.rmtree(rtx3060.root / "lib/modules" / KERNEL_3060 / "modinfo")
    shutil.rmtree(rtx3060.root / "usr")
    if shutil.which("nvidia-smi"):
        pytest.skip("this machine has NVIDIA's driver")
    picture = rtx3060.picture()
    assert (picture.smi, picture.smi_exit) == (None, None)
    (card,) = picture.pci
    assert (card.device, card.driver, card.link_width) == ("2487", None, 16)
    assert picture.driver == DriverState(
        running_kernel=KERNEL_3060, newest_kernel=KERNEL_3060, secure_boot=False
    )


def test_a_card_that_left_the_bus_is_missing_where_it_was(nine: Rack) -> None:
    shutil.rmtree(nine.device("0000:41:00.0"))
    addresses = [card.address for card in nine.picture().pci]
    assert len(addresses) == 8
    assert "0000:41:00.0" not in addresses


def test_a_link_that_fell_to_x1_and_one_that_is_down(nine: Rack) -> None:
    (nine.device("0000:21:00.0") / "current_link_width").write_text("1\n")
    # All ones, as sysfs shows a device that no longer answers.
    (nine.device("0000:22:00.0") / "current_link_width").write_text("63\n")
    (nine.device("0000:22:00.0") / "current_link_speed").write_text("Unknown\n")
    by_address = {card.address: card for card in nine.picture().pci}
    assert by_address["0000:21:00.0"].link_width == 1
    assert by_address["0000:22:00.0"].link_width == 0
    assert by_address["0000:22:00.0"].link_speed == 0.0
    assert by_address["0000:22:00.0"].link_width_max == 16


def test_bus_errors_are_the_totals(nine: Rack) -> None:
    device = nine.device("0000:61:00.0")
    (device / "aer_dev_correctable").write_text("RxErr 31\nBadTLP 9\nTOTAL_ERR_COR 40\n")
    (device / "aer_dev_nonfatal").write_text("Undefined 2\nTOTAL_ERR_NONFATAL 2\n")
    (device / "aer_dev_fatal").write_text("TOTAL_ERR_FATAL 1\n")
    assert BusErrors("0000:61:00.0", 40, 2, 1) in nine.picture().bus_errors


def test_who_holds_a_card(nine: Rack) -> None:
    for address, driver in (("0000:01:00.0", "vfio-pci"), ("0000:21:00.0", "nouveau")):
        link = nine.device(address) / "driver"
        link.unlink()
        link.symlink_to(f"../../../../bus/pci/drivers/{driver}")
    (nine.root / "sys/module/nouveau").mkdir()
    picture = nine.picture()
    assert [card.driver for card in picture.pci[:3]] == ["vfio-pci", "nouveau", "nvidia"]
    assert picture.driver.nouveau_loaded


def _journal(rack: Rack, *messages: str, boot: str = BOOT) -> None:
    with (rack.root / "journal").open("a") as file:
        for message in messages:
            file.write(json.dumps({"MESSAGE": message, "_BOOT_ID": boot}) + "\n")


def test_xids_of_this_boot_and_of_an_earlier_one(nine: Rack) -> None:
    _journal(nine, "NVRM: Xid (PCI:0000:41:00): 31, pid=5179, name=python3", boot="f" * 32)
    _journal(
        nine,
        "usb 1-1: new device",
        "NVRM: Xid (PCI:0000:41:00): 79, pid='<unknown>', GPU has fallen off the bus.",
        "NVRM: Xid (PCI:0000:61:00): 154, GPU recovery action changed from 0x0 to 0x2 (Reboot)",
    )
    (nine.root / "journal").open("a").write("half a line of Js NVRM: Xid (PCI\n")
    assert nine.picture().xids == (
        Xid("0000:41:00.0", 31, "pid=5179, name=python3", this_boot=False),
        Xid("0000:41:00.0", 79, "pid='<unknown>', GPU has fallen off the bus.", this_boot=True),
        Xid(
            "0000:61:00.0",
            154,
            "GPU recovery action changed from 0x0 to 0x2 (Reboot)",
            this_boot=True,
        ),
    )


def test_a_loss_that_the_driver_names_without_an_xid(nine: Rack) -> None:
    _journal(
        nine,
        "NVRM: The NVIDIA GPU 0000:b3:00.0\nNVRM: (PCI ID: 10de:26b5) installed in this system"
        " has\nNVRM: fallen off the bus and is not responding to commands.",
    )
    (xid,) = nine.picture().xids
    assert (xid.address, xid.code, xid.this_boot) == ("0000:b3:00.0", 79, True)


def test_a_flood_of_xids_is_bounded(nine: Rack) -> None:
    _journal(nine, *(f"NVRM: Xid (PCI:0000:41:00): 63, row {row}" for row in range(3000)))
    xids = nine.picture().xids
    assert 50 <= len(xids) <= 200
    assert xids[-1].text == "row 2999"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver."),
        (18, "Failed to initialize NVML: Driver/library version mismatch"),
        (6, "No devices were found"),
    ],
)
def test_an_nvidia_smi_that_fails_says_why(nine: Rack, status: int, words: str) -> None:
    (nine.root / "smi.csv").write_text((nine.root / "smi.csv").read_text().splitlines()[0] + "\n")
    (nine.root / SMI_EXIT).write_text(str(status))
    (nine.root / SMI_SAYS).write_text(words)
    picture = nine.picture()
    assert (picture.smi, picture.smi_exit, picture.smi_said) == (None, status, words)
    assert len(picture.pci) == 9
    assert picture.links == ()


def test_an_nvidia_smi_that_cannot_even_list_its_fields(rtx3060: Rack) -> None:
    words = "Failed to initialize NVML: Driver/library version mismatch"
    place_program(
        rtx3060,
        "nvidia-smi",
        "case $1 in --query-gpu=) echo 'Field \"\" is not a valid field to query.'; exit 2;;"
        f" --query-gpu=*) echo '{words}'; exit 18;; *) exit 18;; esac",
    )
    picture = rtx3060.picture()
    assert (picture.smi, picture.smi_exit, picture.smi_said) == (None, 18, words)


def test_no_card_at_all_is_an_answer(nine: Rack) -> None:
    (nine.root / "smi.csv").write_text((nine.root / "smi.csv").read_text().splitlines()[0] + "\n")
    (nine.root / SMI_SAYS).write_text("No devices were found\n")
    picture = nine.picture()
    assert (picture.smi, picture.smi_exit) == ((), 0)
    assert picture.smi_said == "No devices were found"


def test_a_hung_nvidia_smi_is_given_up(nine: Rack) -> None:
    (nine.root / SMI_HANGS).touch()
    # The same limit in time-lapse: `timeout` itself runs, with a hundredth of the seconds.
    place_program(
        nine,
        "timeout",
        'kill=$1; seconds=$2; shift 2; exec /usr/bin/timeout "$kill" "${seconds%0}.1" "$@"',
    )
    began = time.monotonic()
    picture = nine.picture()
    assert time.monotonic() - began < 30
    assert (picture.smi, picture.smi_exit) == (None, 124)
    assert len(picture.pci) == 9


@pytest.mark.parametrize(
    "line",
    [
        "Unable to determine the device handle for GPU0000:41:00.0: Unknown Error",
        "Unable to determine the device handle for GPU 0000:41:00.0: GPU is lost.  "
        "Reboot the system to recover this GPU",
    ],
)
def test_a_lost_card_does_not_hide_the_others(nine: Rack, line: str) -> None:
    rows = (nine.root / "smi.csv").read_text().splitlines()
    rows = [row for row in rows if "00000000:41:00.0" not in row]
    (nine.root / "smi.csv").write_text("\n".join(rows) + "\n")
    (nine.root / SMI_SAYS).write_text(line + "\n")
    (nine.root / SMI_EXIT).write_text("15")
    picture = nine.picture()
    assert picture.smi is not None
    assert len(picture.smi) == 8
    assert picture.smi_exit == 15
    assert address_of(picture.smi_said) == "0000:41:00.0"


def test_values_a_card_cannot_give_are_none(rtx3060: Rack) -> None:
    heading, row = (rtx3060.root / "smi.csv").read_text().splitlines()
    values = dict(zip(heading.split(", "), row.split(", "), strict=True))
    for field, words in (
        ("power.limit", "[GPU requires reset]"),
        ("power.max_limit", "[Unknown Error]"),
        ("memory.used", "[Not Supported]"),
        ("pcie.link.width.current", "[N/A]"),
        ("clocks_event_reasons.active", "[N/A]"),
        ("clocks_throttle_reasons.active", "[Insufficient Permissions]"),
        ("vbios_version", "[Unknown Error]"),
        ("persistence_mode", "[Unknown Error]"),
        ("gpu_recovery_action", "Reset"),
    ):
        values[field] = words
    (rtx3060.root / "smi.csv").write_text(f"{heading}\n{', '.join(values.values())}\n")
    (card,) = rtx3060.picture().smi or ()
    assert (card.power_limit_w, card.power_max_w, card.memory_used_mib) == (None, None, None)
    assert (card.link_width, card.throttle, card.vbios) == (None, None, None)
    assert card.persistence is None
    assert card.recovery_action == "Reset"
    assert card.power_default_w == 170.0


def test_an_old_driver_is_asked_only_what_it_knows(rtx3060: Rack) -> None:
    old = "index, name, uuid, pci.bus_id, pci.device_id, driver_version"
    new = "clocks_throttle_reasons.active"
    uuid = "GPU-3f07f354-689d-c45e-2ed7-d86fe3cba40f"
    (rtx3060.root / "smi.csv").write_text(
        f"{old}, {new}\n0, NVIDIA GeForce RTX 3060, {uuid}, 00000000:2D:00.0, 0x248710DE,"
        " 470.256.02, 0x0000000000000080\n"
    )
    picture = rtx3060.picture()
    assert (picture.smi_exit, picture.smi_said) == (0, "")
    (card,) = picture.smi or ()
    assert (card.uuid, card.driver_version) == (uuid, "470.256.02")
    assert card.throttle == 0x80
    assert (card.power_limit_w, card.recovery_action) == (None, None)


def test_the_newest_kernel_is_the_one_that_would_boot(rtx3060: Rack) -> None:
    # A name that sorts last as text and not as a version, and one whose kernel was removed.
    for kernel in ("6.8.0-9-generic", "6.8.0-101-generic", "6.14.0-1-generic"):
        (rtx3060.root / "lib/modules" / kernel).mkdir()
    for kernel in ("6.8.0-9-generic", "6.8.0-101-generic"):
        (rtx3060.root / f"boot/vmlinuz-{kernel}").touch()
    driver = rtx3060.picture().driver
    assert (driver.running_kernel, driver.newest_kernel) == (KERNEL_3060, "6.8.0-101-generic")
    assert (driver.on_disk, driver.on_disk_flavour) == (None, None)
    assert driver.loaded == "570.124.04"


@pytest.mark.parametrize(
    ("module", "licence", "flavour"),
    [("nvidia-current", "NVIDIA", "proprietary"), ("nvidia-current-open", "Dual MIT/GPL", "open")],
)
def test_debian_s_names_of_the_module(
    rtx3060: Rack, module: str, licence: str, flavour: str
) -> None:
    modules = rtx3060.root / "lib/modules" / KERNEL_3060 / "modinfo"
    (modules / "nvidia").rename(modules / module)
    (modules / module / "license").write_text(f"{licence}\n")
    (modules / module / "version").write_text("550.163.01\n")
    driver = rtx3060.picture().driver
    assert (driver.on_disk, driver.on_disk_flavour) == ("550.163.01", flavour)


def test_a_loaded_proprietary_module(rtx3060: Rack) -> None:
    (rtx3060.root / "proc/driver/nvidia/version").write_text(
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.124.04  Tue Feb 25 04:08:51 UTC 2025\n"
    )
    assert rtx3060.picture().driver.loaded_flavour == "proprietary"


def test_a_library_that_moved_under_the_module(rtx3060: Rack) -> None:
    libraries = rtx3060.root / "usr/lib/x86_64-linux-gnu"
    (libraries / "libnvidia-ml.so.1").unlink()
    (libraries / "libnvidia-ml.so.580.105.08").touch()
    (libraries / "libnvidia-ml.so.1").symlink_to("libnvidia-ml.so.580.105.08")
    driver = rtx3060.picture().driver
    assert (driver.loaded, driver.library) == ("570.124.04", "580.105.08")


def test_secure_boot_on_and_absent(rtx3060: Rack) -> None:
    (variable,) = (rtx3060.root / "sys/firmware/efi/efivars").iterdir()
    variable.write_bytes(bytes([6, 0, 0, 0, 1]))
    assert rtx3060.picture().driver.secure_boot is True
    shutil.rmtree(rtx3060.root / "sys/firmware")
    assert rtx3060.picture().driver.secure_boot is None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("00000000:2D:00.0", "0000:2d:00.0"),
        ("PCI:0000:C1:00", "0000:c1:00.0"),
        ("00000009:01:00.0", "0009:01:00.0"),
        ("GPU0000:41:00.0: Unknown Error", "0000:41:00.0"),
        ("[Unknown Error]", None),
    ],
)
def test_addresses_are_written_as_sysfs_writes_them(text: str, address: str | None) -> None:
    assert address_of(text) == address


def test_output_that_makes_no_sense_is_no_card_and_no_traceback() -> None:
    picture = parse(
        {
            "pci": ["device=0000:01:00.0", "class:0x030000", "device:0x", "numa_node:"],
            "smi": ["fields index,pci.bus_id", "1", "x, y, z", ",", "exit"],
            "topology": ["GPU0", "GPU0 X", "GPU7"],
            "journal": ["{}", "[]", '{"MESSAGE": null, "_BOOT_ID": "a"}', "NVRM: Xid"],
            "secure-boot": ["6 0"],
            "on-disk": ["580.1"],
            "library": ["/usr/lib/libnvidia-ml.so.1"],
        }
    )
    assert [card.address for card in picture.pci] == ["0000:01:00.0"]
    assert picture.smi is None
    assert (picture.xids, picture.links) == ((), ())
    assert (picture.driver.library, picture.driver.secure_boot) == (None, None)
