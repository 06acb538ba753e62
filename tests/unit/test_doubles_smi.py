"""The fake nvidia-smi speaks as the real one does, and Holdfast's own facts read it."""

from __future__ import annotations

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from facts.gpu import GpuPicture
from facts.gpu_picture import SMI_FIELDS, Picture
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import RemappedRows, known, rack
from tests.doubles.sysfs import sysfs
from tests.unit.local_host import LocalHost

FIELDS = "index,name,uuid,pci.bus_id,pci.device_id,power.limit,memory.total,ecc.mode.current"
CSV = "--format=csv,noheader,nounits"


def test_nine_cards_make_nine_lines(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("rack9x3090"))
    done = machine.smi(f"--query-gpu={FIELDS}", CSV)
    assert done.returncode == 0
    assert done.stdout.splitlines() == [
        f"{index}, NVIDIA GeForce RTX 3090, {card.uuid}, 0000{card.address.upper()}, 0x220410DE,"
        " 350.00, 24576, [N/A]"
        for index, card in enumerate(machine.rack.cards)
    ]


def test_header_and_units_are_there_unless_they_are_refused(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("h200"))
    done = machine.smi("--query-gpu=name,memory.total,ecc.mode.current", "--format=csv")
    assert done.stdout.splitlines() == [
        "name, memory.total [MiB], ecc.mode.current",
        "NVIDIA H200, 143771 MiB, Enabled",
    ]


def test_help_lists_every_field_that_holdfast_asks_for(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3060"))
    said = machine.smi("--help-query-gpu").stdout
    assert said.startswith('List of valid properties to query for the switch "--query-gpu":\n')
    assert [name for name in SMI_FIELDS.values() if f'"{name}"' not in said] == []


def test_an_unknown_field_is_refused_by_name(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3060"))
    done = machine.smi("--query-gpu=index,colour", CSV)
    assert (done.returncode, done.stdout) == (
        2,
        'Field "colour" is not a valid field to query.\n',
    )


def test_cards_are_listed(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3060"))
    uuid = machine.rack.cards[0].uuid
    assert machine.smi("-L").stdout == f"GPU 0: NVIDIA GeForce RTX 3060 (UUID: {uuid})\n"


def test_one_card_is_asked_for_by_index_uuid_or_address(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("dualstack"))
    card = machine.rack.cards[1]
    for identity in ("1", card.uuid, card.address):
        assert machine.smi("-i", identity, "--query-gpu=index", CSV).stdout == "1\n"
    missing = machine.smi("-i", "GPU-0", "-pl", "150")
    assert (missing.returncode, missing.stdout) == (6, "No devices were found\n")


def test_a_power_limit_is_set_and_told_as_the_real_one_tells_it(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090"))
    card = machine.rack.cards[1]
    persistence = machine.smi("-pm", "1")
    assert persistence.stdout.splitlines() == [
        "Enabled persistence mode for GPU 00000000:41:00.0.",
        "Enabled persistence mode for GPU 00000000:42:00.0.",
        "All done.",
    ]
    done = machine.smi("-i", card.uuid, "-pl", "280")
    assert done.stdout == (
        "Power limit for GPU 00000000:42:00.0 was set to 280.00 W from 350.00 W.\nAll done.\n"
    )
    limits = machine.smi("--query-gpu=power.limit", CSV).stdout
    assert limits.splitlines() == ["350.00", "280.00"]
    assert "already Enabled" in machine.smi("-pm", "1").stdout


def test_without_persistence_a_limit_is_warned_of_and_lost(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    done = machine.smi("-pl", "280")
    assert done.returncode == 0
    assert "Warning: persistence mode is disabled on device 00000000:41:00.0." in done.stdout
    assert machine.smi("--query-gpu=power.limit", CSV).stdout == "350.00\n"


def test_a_5090_refuses_less_than_400_watts(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx5090"))
    done = machine.smi("-i", machine.rack.cards[0].uuid, "-pl", "300")
    assert (done.returncode, done.stdout.splitlines()) == (
        2,
        [
            "Provided power limit 300.00 W is not a valid power limit which should be between"
            " 400.00 W and 600.00 W for GPU 00000000:41:00.0",
            "Terminating early due to previous errors.",
        ],
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["-pl", "300"],
            "Failed to set power management limit for GPU 00000000:41:00.0: Insufficient"
            " Permissions",
        ),
        (
            ["-pm", "1"],
            "Unable to set persistence mode for GPU 00000000:41:00.0: Insufficient Permissions",
        ),
        (
            ["-lgc", "210,1500"],
            "The current user does not have permission to change clocks for GPU 00000000:41:00.0.",
        ),
    ],
)
def test_only_the_administrator_may_change_settings(
    arguments: list[str], said: str, tmp_path: Path
) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.rack.administrator = os.geteuid() + 1
    machine.write()
    done = machine.smi(*arguments)
    assert (done.returncode, done.stdout.splitlines()[0]) == (4, said)


def test_clocks_are_locked_and_freed(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx5090"))
    machine.rack.cards[0].clocks.graphics_mhz = 2900
    machine.rack.cards[0].persistence = True
    machine.write()
    locked = machine.smi("-i", "0", "-lgc", "210,2000")
    assert locked.stdout == (
        'GPU clocks set to "(gpuClkMin 210, gpuClkMax 2000)" for GPU 00000000:41:00.0\nAll done.\n'
    )
    query = "--query-gpu=clocks.current.graphics"
    assert machine.smi(query, CSV).stdout == "2000\n"
    assert machine.smi("-rgc").stdout == "All done.\n"
    assert machine.smi(query, CSV).stdout == "2900\n"


def test_a_lost_card_is_named_and_the_others_still_listed(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090", "rtx3090"))
    machine.rack.cards[1].state = "lost"
    machine.write()
    done = machine.smi("--query-gpu=index", CSV)
    assert done.returncode == 15
    assert done.stdout.splitlines() == [
        "0",
        "Unable to determine the device handle for GPU1: 0000:42:00.0: GPU is lost."
        "  Reboot the system to recover this GPU",
        "2",
    ]


def test_each_way_not_to_start_has_its_status_and_its_sentence(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))

    def answer() -> tuple[int, str]:
        done = machine.smi("-L")
        return done.returncode, done.stdout.splitlines()[0]

    machine.rack.cards[0].state = "unpowered"
    machine.write()
    assert answer()[0] == 8
    machine.rack.cards[0].state = "gone"
    machine.write()
    assert answer() == (6, "No devices were found")
    machine.rack.driver.loaded = "570.211.01"
    machine.write()
    assert answer() == (18, "Failed to initialize NVML: Driver/library version mismatch")
    assert machine.smi("-L").stdout.splitlines()[1] == "NVML library version: 580.95"
    machine.rack.driver.loaded = None
    machine.write()
    status, said = answer()
    assert status == 9
    assert said.startswith("NVIDIA-SMI has failed because it couldn't communicate with the")
    (tmp_path / "lib" / "libnvidia-ml.so.1").unlink()
    status, said = answer()
    assert status == 12
    assert said.startswith("NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.")


def test_what_it_does_not_know_it_refuses(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    assert machine.smi().returncode == 2
    assert machine.smi("--gpu-reset").returncode == 2


def test_the_xml_says_what_the_csv_says(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("dualstack"))
    log = ElementTree.fromstring(machine.smi("-q", "-x").stdout)
    assert log.findtext("driver_version") == "580.95.05"
    assert log.findtext("cuda_version") == "13.0"
    assert log.findtext("attached_gpus") == "2"
    big = log.find("gpu")
    assert big is not None
    assert big.get("id") == "00000000:41:00.0"
    expected = {
        "product_name": "NVIDIA GeForce RTX 5090",
        "uuid": machine.rack.cards[0].uuid,
        "pci/pci_device_id": "2B8510DE",
        "pci/pci_bus_id": "00000000:41:00.0",
        "pci/pci_gpu_link_info/pcie_gen/max_link_gen": "5",
        "pci/pci_gpu_link_info/link_widths/current_link_width": "16x",
        "fb_memory_usage/total": "32607 MiB",
        "gpu_power_readings/min_power_limit": "400.00 W",
        "gpu_power_readings/current_power_limit": "575.00 W",
        "temperature/gpu_temp": "33 C",
        "clocks/graphics_clock": "210 MHz",
        "max_clocks/mem_clock": "14001 MHz",
        "ecc_mode/current_ecc": "N/A",
    }
    assert {path: big.findtext(path) for path in expected} == expected


@pytest.mark.parametrize("name", ["rack9x3090", "dualstack", "hgx8xh100"])
def test_holdfasts_picture_of_a_healthy_rack(name: str, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known(name))
    seen = picture(machine)
    assert seen.smi_exit == 0
    assert seen.smi is not None
    assert [card.uuid for card in seen.smi] == [card.uuid for card in machine.rack.cards]
    assert [card.address for card in seen.pci] == [card.address for card in seen.smi]
    for card, pci, smi in zip(machine.rack.cards, seen.pci, seen.smi, strict=True):
        assert pci.device == smi.device == card.device
        assert pci.subsystem == card.subsystem
        assert pci.link_width == smi.link_width == card.link.width
        assert (pci.driver, pci.iommu_group) == ("nvidia", card.iommu_group)
        assert smi.power_limit_w == card.power.default_w
        assert smi.memory_total_mib == card.memory.total_mib
        assert smi.recovery_action == "None"
    assert seen.nvswitches == machine.rack.nvswitches
    pairs = len(seen.pci) * (len(seen.pci) - 1) // 2
    kind = "NV18" if name == "hgx8xh100" else "PHB"
    assert [link for *_, link in seen.links] == [kind] * pairs


def test_holdfasts_picture_of_a_sick_rack(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("quad3090"))
    lost, narrow, given_away, rows = machine.rack.cards
    lost.state = "lost"
    narrow.link.width = 1
    narrow.bus_errors.correctable = 12
    given_away.driver = "vfio-pci"
    rows.remapped_rows = RemappedRows(pending=True)
    rows.recovery_action = 1
    machine.write()
    seen = picture(machine)
    assert seen.smi_exit == 15
    assert seen.smi is not None
    assert [card.uuid for card in seen.smi] == [narrow.uuid, rows.uuid]
    assert [card.link_width for card in seen.pci] == [0, 1, 16, 16]
    assert seen.pci[2].driver == "vfio-pci"
    assert seen.bus_errors[1].correctable == 12
    assert (seen.smi[1].recovery_action, seen.smi[1].remapped_rows_pending) == ("Reset", True)


def picture(machine: FakeMachine) -> Picture:
    """What the fact sees of the machine, with only its programs and its PCI devices."""
    root = machine.folder / "root"
    sysfs(machine.rack, root / "sys/bus/pci/devices")
    host = LocalHost(programs=machine.programs)
    seen = host.get_fact(GpuPicture, root=str(root))
    assert isinstance(seen, Picture)
    return seen
