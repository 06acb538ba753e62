"""The fake NVML library is good enough that unmodified nvidia-ml-py reads it."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest

from tests.doubles import library
from tests.doubles.machine import FakeMachine
from tests.doubles.rack import Kind, Process, known, rack

ROOT = Path(__file__).parents[2]

READ_EVERYTHING = """
import json
def card(h):
    p, m = nvmlDeviceGetPciInfo(h), nvmlDeviceGetMemoryInfo(h, version=nvmlMemory_v2)
    def optional(f):
        try: return f(h)
        except NVMLError_NotSupported: return None
    return dict(
        name=nvmlDeviceGetName(h), uuid=nvmlDeviceGetUUID(h), bus=p.busId,
        device=f"{p.pciDeviceId:08x}", subsystem=f"{p.pciSubSystemId:08x}",
        index=nvmlDeviceGetIndex(h), minor=nvmlDeviceGetMinorNumber(h),
        serial=optional(nvmlDeviceGetSerial), vbios=nvmlDeviceGetVbiosVersion(h),
        limits=nvmlDeviceGetPowerManagementLimitConstraints(h),
        limit=nvmlDeviceGetPowerManagementLimit(h),
        default=nvmlDeviceGetPowerManagementDefaultLimit(h),
        enforced=nvmlDeviceGetEnforcedPowerLimit(h), draw=nvmlDeviceGetPowerUsage(h),
        total=m.total // 2**20, sum=(m.used + m.free + m.reserved) // 2**20,
        old=nvmlDeviceGetMemoryInfo(h).total // 2**20,
        temperature=nvmlDeviceGetTemperature(h, NVML_TEMPERATURE_GPU),
        temperature_v=nvmlDeviceGetTemperatureV(h, NVML_TEMPERATURE_GPU),
        clocks=[nvmlDeviceGetClockInfo(h, k) for k in range(3)],
        highest=[nvmlDeviceGetMaxClockInfo(h, k) for k in range(3)],
        busy=nvmlDeviceGetUtilizationRates(h).gpu,
        link=[nvmlDeviceGetCurrPcieLinkGeneration(h), nvmlDeviceGetMaxPcieLinkGeneration(h),
              nvmlDeviceGetCurrPcieLinkWidth(h), nvmlDeviceGetMaxPcieLinkWidth(h)],
        replays=nvmlDeviceGetPcieReplayCounter(h),
        processes=[len(nvmlDeviceGetComputeRunningProcesses(h)),
                   len(nvmlDeviceGetGraphicsRunningProcesses(h))],
        throttle=nvmlDeviceGetCurrentClocksEventReasons(h),
        display=nvmlDeviceGetDisplayActive(h), ecc=optional(nvmlDeviceGetEccMode),
        mig=optional(nvmlDeviceGetMigMode), rows=optional(nvmlDeviceGetRemappedRows),
        capability=nvmlDeviceGetCudaComputeCapability(h),
        architecture=nvmlDeviceGetArchitecture(h), state=nvmlDeviceGetPerformanceState(h),
    )
print(json.dumps([card(nvmlDeviceGetHandleByIndex(i)) for i in range(nvmlDeviceGetCount())]))
"""

SET = """
card = nvmlDeviceGetHandleByIndex({index})
nvmlDeviceSetPowerManagementLimit(card, {watts} * 1000)
"""
LIMIT = "print(nvmlDeviceGetPowerManagementLimit(nvmlDeviceGetHandleByIndex({index})) / 1000)"
PERSIST = "nvmlDeviceSetPersistenceMode(nvmlDeviceGetHandleByIndex(0), 1)"


def refusal(machine: FakeMachine, program: str) -> str:
    """The name of the error that the program ends with."""
    with pytest.raises(AssertionError) as raised:
        machine.run(program)
    return str(raised.value).strip().splitlines()[-1].partition(":")[0].removeprefix("pynvml.")


@pytest.mark.parametrize("name", ["rack9x3090", "dualstack", "hgx8xh100", "h200"])
def test_unmodified_bindings_read_every_kind_of_card(name: str, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known(name))
    read = json.loads(machine.run(READ_EVERYTHING))
    assert len(read) == len(machine.rack.cards)
    for index, (card, seen) in enumerate(zip(machine.rack.cards, read, strict=True)):
        subsystem = "".join(reversed(card.subsystem.split(":")))
        power, clocks, link = card.power, card.clocks, card.link
        rows = [0, 0, 0, 0] if card.remapped_rows else None
        assert seen == {
            "name": card.name,
            "uuid": card.uuid,
            "bus": f"0000{card.address}".upper(),
            "device": f"{card.device}10de",
            "subsystem": subsystem,
            "index": index,
            "minor": index,
            "serial": card.serial,
            "vbios": card.vbios,
            "limits": [power.min_w * 1000, power.max_w * 1000],
            "limit": power.default_w * 1000,
            "default": power.default_w * 1000,
            "enforced": power.default_w * 1000,
            "draw": power.draw_w * 1000,
            "total": card.memory.total_mib,
            "sum": card.memory.total_mib,
            "old": card.memory.total_mib,
            "temperature": card.temperature_c,
            "temperature_v": card.temperature_c,
            "clocks": [clocks.graphics_mhz, clocks.graphics_mhz, clocks.memory_mhz],
            "highest": [clocks.max_graphics_mhz, clocks.max_graphics_mhz, clocks.max_memory_mhz],
            "busy": 0,
            "link": [link.generation, link.generation_max, link.width, link.width_max],
            "replays": 0,
            "processes": [0, 0],
            "throttle": 1,
            "display": 0,
            "ecc": None if card.ecc is None else [1, 1],
            "mig": None if card.mig is None else [0, 0],
            "rows": rows,
            "capability": [int(part) for part in card.compute_capability.split(".")],
            "architecture": card.architecture,
            "state": card.performance_state,
        }


def test_versions_are_those_of_module_and_library(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    assert machine.run("print(nvmlSystemGetDriverVersion())") == "580.95.05"
    assert machine.run("print(nvmlSystemGetNVMLVersion())") == "13.580.95.05"
    assert machine.run("print(nvmlSystemGetCudaDriverVersion())") == "13000"


def test_a_card_is_found_by_uuid_and_by_address(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("dualstack"))
    small = machine.rack.cards[1]
    for call in (f"HandleByUUID('{small.uuid}')", f"HandleByPciBusId('{small.address}')"):
        assert machine.run(f"print(nvmlDeviceGetIndex(nvmlDeviceGet{call}))") == "1"
    assert refusal(machine, "nvmlDeviceGetHandleByUUID('GPU-0')") == "NVMLError_NotFound"
    assert refusal(machine, "nvmlDeviceGetHandleByIndex(2)") == "NVMLError_InvalidArgument"


def test_processes_are_listed_with_their_memory(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.rack.cards[0].processes = [
        Process(pid=42, memory_mib=20000),
        Process(pid=7, memory_mib=100, kind="graphics"),
    ]
    machine.write()
    program = (
        "for p in nvmlDeviceGetComputeRunningProcesses(nvmlDeviceGetHandleByIndex(0)):"
        " print(p.pid, p.usedGpuMemory // 2**20)"
    )
    assert machine.run(program) == "42 20000"


def test_a_limit_is_read_back_by_another_process(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090"))
    machine.run(PERSIST)
    machine.run(SET.format(index=0, watts=280))
    assert machine.run(LIMIT.format(index=0)) == "280.0"
    assert machine.run(LIMIT.format(index=1)) == "350.0"


@pytest.mark.parametrize(
    ("kind", "watts"), [("rtx3090", 99), ("rtx3090", 367), ("rtx5090", 399), ("h100", 701)]
)
def test_a_limit_out_of_range_is_refused_and_not_kept(
    kind: Kind, watts: int, tmp_path: Path
) -> None:
    machine = FakeMachine(tmp_path, rack(kind))
    machine.run(PERSIST)
    default = str(machine.rack.cards[0].power.default_w)
    assert refusal(machine, SET.format(index=0, watts=watts)) == "NVMLError_InvalidArgument"
    assert machine.run(LIMIT.format(index=0)) == default


@pytest.mark.parametrize(
    "change",
    [
        "nvmlDeviceSetPowerManagementLimit(card, 300000)",
        "nvmlDeviceSetPersistenceMode(card, 1)",
        "nvmlDeviceSetGpuLockedClocks(card, 210, 1500)",
        "nvmlDeviceResetGpuLockedClocks(card)",
    ],
)
def test_only_the_administrator_may_change_settings(change: str, tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    program = f"card = nvmlDeviceGetHandleByIndex(0)\n{change}"
    machine.run(program)
    machine.rack.administrator = os.geteuid() + 1
    machine.write()
    assert refusal(machine, program) == "NVMLError_NoPermission"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_another_user_reads_what_root_has_set_and_sets_nothing(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.run(PERSIST)
    machine.run(SET.format(index=0, watts=280))
    # Everything below the system's own folder for temporary files, however deep pytest nests.
    for folder in (tmp_path, *tmp_path.parents):
        if folder == Path(tempfile.gettempdir()):
            break
        folder.chmod(0o755)
    nobody = "import os; os.setuid(65534)\n"
    assert machine.run(nobody + LIMIT.format(index=0)) == "280.0"
    assert refusal(machine, nobody + SET.format(index=0, watts=200)) == "NVMLError_NoPermission"


def test_without_persistence_a_limit_goes_with_the_last_client(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    watcher = machine.start("-c", "import pynvml; pynvml.nvmlInit(); print('in'); input()")
    assert watcher.stdout is not None
    watcher.stdout.readline()
    machine.run(SET.format(index=0, watts=280))
    assert machine.run(LIMIT.format(index=0)) == "280.0"
    watcher.communicate("\n", timeout=60)
    assert machine.run(LIMIT.format(index=0)) == "350.0"


def test_a_client_that_is_killed_no_longer_counts(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    watcher = machine.start("-c", "import pynvml; pynvml.nvmlInit(); print('in'); input()")
    assert watcher.stdout is not None
    watcher.stdout.readline()
    machine.run(SET.format(index=0, watts=280))
    watcher.kill()
    watcher.communicate()
    assert machine.run(LIMIT.format(index=0)) == "350.0"


def test_a_reload_of_the_driver_forgets_limits_and_persistence(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.run(PERSIST)
    machine.run(SET.format(index=0, watts=280))
    machine.reload_driver()
    assert machine.run(LIMIT.format(index=0)) == "350.0"
    mode = "print(nvmlDeviceGetPersistenceMode(nvmlDeviceGetHandleByIndex(0)))"
    assert machine.run(mode) == "0"


def test_a_module_that_was_loaded_again_has_forgotten_too(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    version = tmp_path / "version"
    version.write_text("580.95.05\n")
    machine.rack.driver.loaded = str(version)
    machine.write()
    machine.run(PERSIST)
    machine.run(SET.format(index=0, watts=280))
    assert machine.run(LIMIT.format(index=0)) == "280.0"
    # The kernel makes a new file for each load, while the old one is still held here.
    version.rename(tmp_path / "before")
    assert refusal(machine, "") == "NVMLError_DriverNotLoaded"
    version.write_text("580.95.05\n")
    assert machine.run(LIMIT.format(index=0)) == "350.0"


def test_locked_clocks_hold_the_clock_until_they_are_reset(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx5090"))
    machine.rack.cards[0].clocks.graphics_mhz = 2900
    machine.write()
    card = "card = nvmlDeviceGetHandleByIndex(0)\n"
    clock = card + "print(nvmlDeviceGetClockInfo(card, NVML_CLOCK_GRAPHICS))"
    machine.run(PERSIST)
    machine.run(card + "nvmlDeviceSetGpuLockedClocks(card, 210, 2000)")
    assert machine.run(clock) == "2000"
    machine.run(card + "nvmlDeviceResetGpuLockedClocks(card)")
    assert machine.run(clock) == "2900"
    wrong = card + "nvmlDeviceSetGpuLockedClocks(card, 2000, 210)"
    assert refusal(machine, wrong) == "NVMLError_InvalidArgument"


def test_a_card_takes_no_more_than_its_limit(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.rack.cards[0].power.draw_w = 420
    machine.write()
    usage = "print(nvmlDeviceGetPowerUsage(nvmlDeviceGetHandleByIndex(0)) / 1000)"
    assert machine.run(usage) == "350.0"
    assert machine.run(f"{SET.format(index=0, watts=280)}\n{usage}") == "280.0"


def test_a_card_that_falls_off_the_bus_is_lost_to_a_program_that_watches_it(
    tmp_path: Path,
) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090"))
    program = """
from pynvml import *
nvmlInit()
cards = [nvmlDeviceGetHandleByIndex(i) for i in range(2)]
while True:
    for card in cards:
        try: print(nvmlDeviceGetTemperature(card, NVML_TEMPERATURE_GPU), end=" ")
        except NVMLError as error: print(error, end=" ")
    print(flush=True)
    input()
"""
    watcher = machine.start("-c", program)
    assert watcher.stdout is not None and watcher.stdin is not None
    assert watcher.stdout.readline() == "33 33 \n"
    machine.rack.cards[1].state = "lost"
    machine.write()
    watcher.stdin.write("\n")
    watcher.stdin.flush()
    assert watcher.stdout.readline() == "33 GPU is lost \n"
    watcher.kill()
    watcher.communicate()


def test_a_lost_card_is_still_counted_and_one_that_is_gone_is_not(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090", "rtx3090"))
    first, second, third = machine.rack.cards
    first.state, second.state = "gone", "lost"
    machine.write()
    assert machine.run("print(nvmlDeviceGetCount())") == "2"
    assert refusal(machine, "nvmlDeviceGetHandleByIndex(0)") == "NVMLError_GpuIsLost"
    assert machine.run("print(nvmlDeviceGetUUID(nvmlDeviceGetHandleByIndex(1)))") == third.uuid
    lacking = f"nvmlDeviceGetHandleByUUID('{first.uuid}')"
    assert refusal(machine, lacking) == "NVMLError_NotFound"


def test_a_card_without_external_power_has_no_handle(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.rack.cards[0].state = "unpowered"
    machine.write()
    assert refusal(machine, "nvmlDeviceGetHandleByIndex(0)") == "NVMLError_InsufficientPower"


def test_a_card_of_a_guest_is_not_the_drivers(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, known("dualstack"))
    machine.rack.cards[0].driver = "vfio-pci"
    machine.write()
    assert machine.run("print(nvmlDeviceGetCount())") == "1"


@pytest.mark.parametrize(
    ("loaded", "error"),
    [
        (None, "NVMLError_DriverNotLoaded"),
        ("/nowhere/version", "NVMLError_DriverNotLoaded"),
        ("570.211.01", "NVMLError_LibRmVersionMismatch"),
    ],
)
def test_a_library_without_its_driver_does_not_start(
    loaded: str | None, error: str, tmp_path: Path
) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    machine.rack.driver.loaded = loaded
    machine.write()
    assert refusal(machine, "") == error


def test_a_library_that_was_upgraded_under_a_loaded_driver_does_not_start(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    library.place(tmp_path / "lib", "580.105.08")
    assert refusal(machine, "") == "NVMLError_LibRmVersionMismatch"


def test_nothing_is_read_before_it_is_initialised(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090"))
    program = "nvmlShutdown()\nnvmlDeviceGetCount()"
    assert refusal(machine, program) == "NVMLError_Uninitialized"


def test_where_there_is_no_compiler_the_packages_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library._compiled.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(library.BuildError, match="install gcc, libc6-dev and libjson-c-dev"):
        library.place(tmp_path, "1")


def test_the_library_needs_nothing_but_the_c_library(tmp_path: Path) -> None:
    link = library.place(tmp_path, "580.95.05")
    needed = subprocess.run(
        ["ldd", str(link)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert [name for name in needed if name.startswith("lib")] == ["libc.so.6"]


def test_holdfasts_own_probe_reads_it(tmp_path: Path) -> None:
    machine = FakeMachine(tmp_path, rack("rtx3090", "rtx3090"))
    machine.rack.cards[1].state = "lost"
    machine.write()
    probe = machine.start(str(ROOT / "holdfast/host_programs/gpu_samples.py"), "0")
    said, failed = probe.communicate(timeout=60)
    assert probe.returncode == 0, failed
    samples = json.loads(said)
    assert [card["uuid"] for card in samples["cards"]] == [machine.rack.cards[0].uuid]
    assert samples["unreadable"] == ["card 1: GPU is lost"]
