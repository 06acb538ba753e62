#!/usr/bin/python3
"""A ``nvidia-smi`` that reads the cards through NVML, as far as Holdfast uses one.

Standard library and ``pynvml`` only: it runs in a guest. Wordings are those that users of real
cards posted (README.md says where); exit statuses are those of nvidia-smi(1). What it does not
know it refuses aloud, with exit status 2, rather than guess.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pynvml as nvml

_MIB = 1024 * 1024
_RECOVERY_ACTIONS = ("None", "Reset", "Reboot", "Drain P2P", "Drain and Reset")
_LINKS = {nvml.NVML_TOPOLOGY_HOSTBRIDGE: "PHB", nvml.NVML_TOPOLOGY_SYSTEM: "SYS"}
_TERMINATING = "Terminating early due to previous errors."


class Refused(Exception):
    """Nothing more can be done: ``text`` is printed, ``status`` is the exit status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True)
class Field:
    """One property that ``--query-gpu`` knows: how it is read, and its unit."""

    read: Callable[[Any], str]
    unit: str = ""
    alias: str = ""


def _watts(function: Callable[[Any], int]) -> Callable[[Any], str]:
    return lambda card: f"{function(card) / 1000:.2f}"


def _whole(function: Callable[..., int], *arguments: int) -> Callable[[Any], str]:
    return lambda card: str(function(card, *arguments))


def _memory(part: str) -> Callable[[Any], str]:
    def read(card: Any) -> str:
        memory = nvml.nvmlDeviceGetMemoryInfo(card, version=nvml.nvmlMemory_v2)
        return str(getattr(memory, part) // _MIB)

    return read


def _mode(on: int) -> str:
    return "Enabled" if on else "Disabled"


def _yes(on: int) -> str:
    return "Yes" if on else "No"


def _bus_id(card: Any) -> str:
    return str(nvml.nvmlDeviceGetPciInfo(card).busId)


def _recovery_action(card: Any) -> str:
    (field,) = nvml.nvmlDeviceGetFieldValues(card, [nvml.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])
    return _RECOVERY_ACTIONS[field.value.uiVal]


def _clock(function: Callable[[Any, int], int], kind: int) -> Field:
    return Field(_whole(function, kind), "MHz")


FIELDS: dict[str, Field] = {
    "driver_version": Field(lambda card: str(nvml.nvmlSystemGetDriverVersion())),
    "count": Field(lambda card: str(nvml.nvmlDeviceGetCount())),
    "name": Field(nvml.nvmlDeviceGetName, alias="gpu_name"),
    "serial": Field(nvml.nvmlDeviceGetSerial, alias="gpu_serial"),
    "uuid": Field(nvml.nvmlDeviceGetUUID, alias="gpu_uuid"),
    "pci.bus_id": Field(_bus_id, alias="gpu_bus_id"),
    "pci.device_id": Field(lambda card: f"0x{nvml.nvmlDeviceGetPciInfo(card).pciDeviceId:08X}"),
    "pci.sub_device_id": Field(
        lambda card: f"0x{nvml.nvmlDeviceGetPciInfo(card).pciSubSystemId:08X}"
    ),
    "pcie.link.gen.current": Field(_whole(nvml.nvmlDeviceGetCurrPcieLinkGeneration)),
    "pcie.link.gen.max": Field(_whole(nvml.nvmlDeviceGetMaxPcieLinkGeneration)),
    "pcie.link.width.current": Field(_whole(nvml.nvmlDeviceGetCurrPcieLinkWidth)),
    "pcie.link.width.max": Field(_whole(nvml.nvmlDeviceGetMaxPcieLinkWidth)),
    "index": Field(_whole(nvml.nvmlDeviceGetIndex)),
    "display_active": Field(lambda card: _mode(nvml.nvmlDeviceGetDisplayActive(card))),
    "persistence_mode": Field(lambda card: _mode(nvml.nvmlDeviceGetPersistenceMode(card))),
    "vbios_version": Field(nvml.nvmlDeviceGetVbiosVersion),
    "gpu_recovery_action": Field(_recovery_action),
    "pstate": Field(lambda card: f"P{nvml.nvmlDeviceGetPerformanceState(card)}"),
    "clocks_event_reasons.active": Field(
        lambda card: f"0x{nvml.nvmlDeviceGetCurrentClocksEventReasons(card):016X}",
        alias="clocks_throttle_reasons.active",
    ),
    "memory.total": Field(_memory("total"), "MiB"),
    "memory.reserved": Field(_memory("reserved"), "MiB"),
    "memory.used": Field(_memory("used"), "MiB"),
    "memory.free": Field(_memory("free"), "MiB"),
    "compute_cap": Field(
        lambda card: "{}.{}".format(*nvml.nvmlDeviceGetCudaComputeCapability(card))
    ),
    "utilization.gpu": Field(lambda card: str(nvml.nvmlDeviceGetUtilizationRates(card).gpu), "%"),
    "utilization.memory": Field(
        lambda card: str(nvml.nvmlDeviceGetUtilizationRates(card).memory), "%"
    ),
    "temperature.gpu": Field(_whole(nvml.nvmlDeviceGetTemperature, nvml.NVML_TEMPERATURE_GPU)),
    "power.draw": Field(_watts(nvml.nvmlDeviceGetPowerUsage), "W"),
    "power.limit": Field(_watts(nvml.nvmlDeviceGetPowerManagementLimit), "W"),
    "enforced.power.limit": Field(_watts(nvml.nvmlDeviceGetEnforcedPowerLimit), "W"),
    "power.default_limit": Field(_watts(nvml.nvmlDeviceGetPowerManagementDefaultLimit), "W"),
    "power.min_limit": Field(
        _watts(lambda card: nvml.nvmlDeviceGetPowerManagementLimitConstraints(card)[0]), "W"
    ),
    "power.max_limit": Field(
        _watts(lambda card: nvml.nvmlDeviceGetPowerManagementLimitConstraints(card)[1]), "W"
    ),
    "clocks.current.graphics": _clock(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_GRAPHICS),
    "clocks.current.sm": _clock(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_SM),
    "clocks.current.memory": _clock(nvml.nvmlDeviceGetClockInfo, nvml.NVML_CLOCK_MEM),
    "clocks.max.graphics": _clock(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_GRAPHICS),
    "clocks.max.sm": _clock(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_SM),
    "clocks.max.memory": _clock(nvml.nvmlDeviceGetMaxClockInfo, nvml.NVML_CLOCK_MEM),
    "ecc.mode.current": Field(lambda card: _mode(nvml.nvmlDeviceGetEccMode(card)[0])),
    "mig.mode.current": Field(lambda card: _mode(nvml.nvmlDeviceGetMigMode(card)[0])),
    "remapped_rows.pending": Field(lambda card: _yes(nvml.nvmlDeviceGetRemappedRows(card)[2])),
    "remapped_rows.failure": Field(lambda card: _yes(nvml.nvmlDeviceGetRemappedRows(card)[3])),
}
_BY_EVERY_NAME = FIELDS | {field.alias: field for field in FIELDS.values() if field.alias}


def _value(field: Field, card: Any) -> str:
    try:
        return field.read(card)
    except nvml.NVMLError_NotSupported:
        return "[N/A]"
    except nvml.NVMLError as error:
        return f"[{nvml.nvmlErrorString(error.value)}]"


class Smi:
    """One run: the cards it is about, and the status it will exit with."""

    def __init__(self, wanted: str | None) -> None:
        self.wanted = wanted
        self.status = 0

    def cards(self) -> Iterator[Any]:
        """A handle per card; a card without one is named in passing, the rest still follow."""
        if self.wanted is None:
            identities = [str(index) for index in range(nvml.nvmlDeviceGetCount())]
        else:
            identities = self.wanted.split(",")
        if not identities:
            raise Refused(nvml.NVML_ERROR_NOT_FOUND, "No devices were found")
        for identity in identities:
            try:
                yield _handle(identity)
            except (nvml.NVMLError_NotFound, nvml.NVMLError_InvalidArgument):
                raise Refused(nvml.NVML_ERROR_NOT_FOUND, "No devices were found") from None
            except nvml.NVMLError as error:
                self.status = error.value
                text = nvml.nvmlErrorString(error.value)
                if error.value == nvml.NVML_ERROR_GPU_IS_LOST:
                    text += ".  Reboot the system to recover this GPU"
                print(f"Unable to determine the device handle for {_label(identity)}: {text}")

    def query(self, names: list[str], style: list[str]) -> None:
        """``--query-gpu=NAMES --format=csv...``."""
        for name in names:
            if name not in _BY_EVERY_NAME:
                raise Refused(2, f'Field "{name}" is not a valid field to query.')
        fields = [_BY_EVERY_NAME[name] for name in names]
        units = "nounits" not in style
        if "noheader" not in style:
            heads = zip(names, fields, strict=True)
            print(", ".join(f"{n} [{f.unit}]" if units and f.unit else n for n, f in heads))
        for card in self.cards():
            values = [_value(field, card) for field in fields]
            if units:
                pairs = zip(values, fields, strict=True)
                values = [f"{v} {f.unit}" if f.unit and v[0] != "[" else v for v, f in pairs]
            print(", ".join(values))

    def processes(self, names: list[str]) -> None:
        """``--query-compute-apps=NAMES --format=csv,noheader,nounits``."""
        for card in self.cards():
            for process in nvml.nvmlDeviceGetComputeRunningProcesses(card):
                comm = Path(f"/proc/{process.pid}/comm")
                told = {
                    "gpu_uuid": nvml.nvmlDeviceGetUUID(card),
                    "pid": str(process.pid),
                    "name": comm.read_text().strip() if comm.exists() else "[Not Found]",
                    "used_memory": str(process.usedGpuMemory >> 20),
                }
                print(", ".join(told[name] for name in names))

    def listing(self) -> None:
        """``-L``."""
        for card in self.cards():
            name, uuid = nvml.nvmlDeviceGetName(card), nvml.nvmlDeviceGetUUID(card)
            print(f"GPU {nvml.nvmlDeviceGetIndex(card)}: {name} (UUID: {uuid})")

    def topology(self) -> None:
        """``topo -m``, between cards."""
        cards = list(self.cards())
        names = [f"GPU{nvml.nvmlDeviceGetIndex(card)}" for card in cards]
        heads = [*names, "CPU Affinity", "NUMA Affinity", "GPU NUMA ID"]
        print("\t\x1b[4m" + "\t".join(heads) + "\x1b[0m")
        for name, card in zip(names, cards, strict=True):
            row = [" X " if other is card else _path(card, other) for other in cards]
            print("\t".join([name, *row, "0", "0", "\tN/A"]))
        print("\nLegend:\n\n  X    = Self")

    def set_power_limit(self, watts: float) -> None:
        """``-pl WATTS``."""
        for card in self.cards():
            gpu = _bus_id(card)
            before = nvml.nvmlDeviceGetPowerManagementLimit(card) / 1000
            try:
                nvml.nvmlDeviceSetPowerManagementLimit(card, round(watts * 1000))
            except nvml.NVMLError_InvalidArgument:
                low, high = nvml.nvmlDeviceGetPowerManagementLimitConstraints(card)
                raise Refused(
                    2,
                    f"Provided power limit {watts:.2f} W is not a valid power limit which should"
                    f" be between {low / 1000:.2f} W and {high / 1000:.2f} W for GPU {gpu}\n"
                    + _TERMINATING,
                ) from None
            except nvml.NVMLError as error:
                text = nvml.nvmlErrorString(error.value)
                raise Refused(
                    error.value,
                    f"Failed to set power management limit for GPU {gpu}: {text}\n{_TERMINATING}",
                ) from None
            print(f"Power limit for GPU {gpu} was set to {watts:.2f} W from {before:.2f} W.")
            _warn_of_persistence(card)
        self._done()

    def set_persistence(self, on: bool) -> None:
        """``-pm 0|1``."""
        for card in self.cards():
            gpu = _bus_id(card)
            if bool(nvml.nvmlDeviceGetPersistenceMode(card)) == on:
                print(f"Persistence mode is already {_mode(on)} for GPU {gpu}.")
                continue
            try:
                nvml.nvmlDeviceSetPersistenceMode(card, on)
            except nvml.NVMLError as error:
                text = nvml.nvmlErrorString(error.value)
                raise Refused(
                    error.value,
                    f"Unable to set persistence mode for GPU {gpu}: {text}\n{_TERMINATING}",
                ) from None
            print(f"{_mode(on)} persistence mode for GPU {gpu}.")
        self._done()

    def lock_clocks(self, lowest: int, highest: int) -> None:
        """``-lgc MIN,MAX``, MHz."""
        for card in self._changing_clocks(nvml.nvmlDeviceSetGpuLockedClocks, lowest, highest):
            limits = f'"(gpuClkMin {lowest}, gpuClkMax {highest})"'
            print(f"GPU clocks set to {limits} for GPU {_bus_id(card)}")
            _warn_of_persistence(card)
        self._done()

    def reset_clocks(self) -> None:
        """``-rgc``."""
        for _ in self._changing_clocks(nvml.nvmlDeviceResetGpuLockedClocks):
            pass
        self._done()

    def _changing_clocks(self, change: Callable[..., None], *arguments: int) -> Iterator[Any]:
        for card in self.cards():
            try:
                change(card, *arguments)
            except nvml.NVMLError_NoPermission:
                raise Refused(
                    nvml.NVML_ERROR_NO_PERMISSION,
                    "The current user does not have permission to change clocks for GPU"
                    f" {_bus_id(card)}.\n{_TERMINATING}",
                ) from None
            yield card

    def _done(self) -> None:
        if not self.status:
            print("All done.")

    def xml(self) -> None:
        """``-q -x``, the parts that CSV has too."""
        log = ElementTree.Element("nvidia_smi_log")
        cuda = nvml.nvmlSystemGetCudaDriverVersion()
        _add(log, "driver_version", nvml.nvmlSystemGetDriverVersion())
        _add(log, "cuda_version", f"{cuda // 1000}.{cuda % 1000 // 10}")
        _add(log, "attached_gpus", str(nvml.nvmlDeviceGetCount()))
        for card in self.cards():
            _add_card(log, card)
        ElementTree.indent(log, "\t")
        print('<?xml version="1.0" ?>')
        print('<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_v12.dtd">')
        print(ElementTree.tostring(log, encoding="unicode"))


_XML: dict[str, dict[str, str]] = {
    "": {
        "product_name": "name",
        "display_active": "display_active",
        "persistence_mode": "persistence_mode",
        "serial": "serial",
        "uuid": "uuid",
        "vbios_version": "vbios_version",
        "gpu_recovery_action": "gpu_recovery_action",
        "performance_state": "pstate",
    },
    "mig_mode": {"current_mig": "mig.mode.current"},
    "pci": {"pci_device_id": "pci.device_id", "pci_bus_id": "pci.bus_id"},
    "pci/pci_gpu_link_info/pcie_gen": {
        "max_link_gen": "pcie.link.gen.max",
        "current_link_gen": "pcie.link.gen.current",
    },
    "pci/pci_gpu_link_info/link_widths": {
        "max_link_width": "pcie.link.width.max",
        "current_link_width": "pcie.link.width.current",
    },
    "fb_memory_usage": {
        "total": "memory.total",
        "reserved": "memory.reserved",
        "used": "memory.used",
        "free": "memory.free",
    },
    "utilization": {"gpu_util": "utilization.gpu", "memory_util": "utilization.memory"},
    "ecc_mode": {"current_ecc": "ecc.mode.current"},
    "temperature": {"gpu_temp": "temperature.gpu"},
    "gpu_power_readings": {
        "power_state": "pstate",
        "instant_power_draw": "power.draw",
        "current_power_limit": "enforced.power.limit",
        "requested_power_limit": "power.limit",
        "default_power_limit": "power.default_limit",
        "min_power_limit": "power.min_limit",
        "max_power_limit": "power.max_limit",
    },
    "clocks": {
        "graphics_clock": "clocks.current.graphics",
        "sm_clock": "clocks.current.sm",
        "mem_clock": "clocks.current.memory",
    },
    "max_clocks": {
        "graphics_clock": "clocks.max.graphics",
        "sm_clock": "clocks.max.sm",
        "mem_clock": "clocks.max.memory",
    },
}
"""Where the XML holds what CSV calls otherwise: element to tag to field."""


def _add_card(log: ElementTree.Element, card: Any) -> None:
    gpu = ElementTree.SubElement(log, "gpu", id=_bus_id(card))
    for path, tags in _XML.items():
        parent = gpu
        for tag in path.split("/") if path else ():
            found = parent.find(tag)
            parent = ElementTree.SubElement(parent, tag) if found is None else found
        for tag, name in tags.items():
            value = _value(FIELDS[name], card).strip("[]")
            # The XML writes lanes as 16x, temperatures with their unit and ids without 0x.
            suffix = {"link_widths": "x", "temperature": " C"}.get(path.rpartition("/")[2], "")
            unit = f" {FIELDS[name].unit}" if FIELDS[name].unit else suffix
            _add(parent, tag, value if value == "N/A" else f"{value.removeprefix('0x')}{unit}")


def _add(parent: ElementTree.Element, tag: str, text: str) -> None:
    ElementTree.SubElement(parent, tag).text = text


def _handle(identity: str) -> Any:
    if identity.isdigit():
        return nvml.nvmlDeviceGetHandleByIndex(int(identity))
    if identity.startswith("GPU-"):
        return nvml.nvmlDeviceGetHandleByUUID(identity)
    return nvml.nvmlDeviceGetHandleByPciBusId(identity)


def _label(identity: str) -> str:
    """``GPU1: 0000:42:00.0``; a card asked for by name is called by that name."""
    if not identity.isdigit():
        return identity
    buffer = nvml.create_string_buffer(32)
    nvml.nvmlLib.holdfastAddressByIndex(int(identity), buffer, 32)
    return f"GPU{identity}: {buffer.value.decode().upper()}"


def _path(card: Any, other: Any) -> str:
    links = 0
    try:
        while nvml.nvmlDeviceGetNvLinkState(card, links):
            links += 1
    except nvml.NVMLError_InvalidArgument:
        pass
    if links:
        return f"NV{links}"
    return _LINKS[nvml.nvmlDeviceGetTopologyCommonAncestor(card, other)]


def _warn_of_persistence(card: Any) -> None:
    if not nvml.nvmlDeviceGetPersistenceMode(card):
        print(
            f"\nWarning: persistence mode is disabled on device {_bus_id(card)}. See the Known"
            " Issues section of the nvidia-smi(1) man page for more information. Run with"
            " [--help | -h] switch to get more information on how to enable persistence mode."
        )


def _why_not_started(error: Any) -> str:
    if error.value == nvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return (
            "NVIDIA-SMI couldn't find libnvidia-ml.so library in your system. Please make sure"
            " that the NVIDIA Display Driver is properly installed and present in your system.\n"
            "Please also try adding directory that contains libnvidia-ml.so to your system PATH."
        )
    if error.value == nvml.NVML_ERROR_DRIVER_NOT_LOADED:
        return (
            "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make"
            " sure that the latest NVIDIA driver is installed and running.\n"
        )
    text = f"Failed to initialize NVML: {nvml.nvmlErrorString(error.value)}"
    if error.value == nvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH:
        # 13.580.95.05: the CUDA version it comes with, then its own, of which it prints two parts.
        library = nvml.nvmlSystemGetNVMLVersion().split(".")
        text += f"\nNVML library version: {'.'.join(library[1:3])}"
    return text


def _arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("nvidia-smi", allow_abbrev=False)
    parser.add_argument("command", nargs="?", choices=["topo"])
    parser.add_argument("-m", "--matrix", action="store_true")
    parser.add_argument("-i", "--id")
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("-q", "--query", action="store_true")
    parser.add_argument("-x", "--xml-format", action="store_true")
    parser.add_argument("--query-gpu")
    parser.add_argument("--query-compute-apps")
    parser.add_argument("--format", default="")
    parser.add_argument("--help-query-gpu", action="store_true")
    parser.add_argument("-pl", "--power-limit", type=float)
    parser.add_argument("-pm", "--persistence-mode", choices=["0", "1", "DISABLED", "ENABLED"])
    parser.add_argument("-lgc", "--lock-gpu-clocks")
    parser.add_argument("-rgc", "--reset-gpu-clocks", action="store_true")
    return parser.parse_args(arguments)


def _help_query_gpu() -> None:
    print('List of valid properties to query for the switch "--query-gpu":\n')
    for name, field in FIELDS.items():
        print(f'"{name}" or "{field.alias}"\n' if field.alias else f'"{name}"\n')


def _run(smi: Smi, asked: argparse.Namespace) -> None:
    if asked.query_gpu:
        names = [name.strip() for name in asked.query_gpu.split(",")]
        smi.query(names, asked.format.split(","))
    elif asked.query_compute_apps:
        smi.processes(asked.query_compute_apps.split(","))
    elif asked.list_gpus:
        smi.listing()
    elif asked.command == "topo" and asked.matrix:
        smi.topology()
    elif asked.query and asked.xml_format:
        smi.xml()
    elif asked.power_limit is not None:
        smi.set_power_limit(asked.power_limit)
    elif asked.persistence_mode:
        smi.set_persistence(asked.persistence_mode in ("1", "ENABLED"))
    elif asked.lock_gpu_clocks:
        lowest, _, highest = asked.lock_gpu_clocks.partition(",")
        smi.lock_clocks(int(lowest), int(highest or lowest))
    elif asked.reset_gpu_clocks:
        smi.reset_clocks()
    else:
        raise Refused(2, "This stand-in for nvidia-smi does not know these arguments.")


def main(arguments: list[str]) -> int:
    """Run it; the exit status."""
    asked = _arguments(arguments)
    if asked.help_query_gpu:
        _help_query_gpu()
        return 0
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        print(_why_not_started(error))
        return int(error.value)
    smi = Smi(asked.id)
    try:
        _run(smi, asked)
    except Refused as refusal:
        print(refusal)
        return refusal.status
    return smi.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
