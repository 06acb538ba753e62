"""The state of a machine's NVIDIA cards, typed, from sysfs, driver and journal.

The types are what acceptance and the deploys decide on; the parsers below them turn the output of
`facts.gpu` into them and touch no machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Flavour = Literal["open", "proprietary"]

SMI = "timeout --kill-after=5 60 nvidia-smi"
"""A faulty driver makes it hang; 60 s is enough to wake eight cards."""

# Used by deploys, and by a host between them. Debian's own packages call the
# module nvidia-current[-open]; "libc6,": of this machine's own word size.
ON_DISK = (
    "for module in nvidia nvidia-current nvidia-current-open; do"
    ' version=$(modinfo -k "$newest" -F version $module) && [ "$version" ]'
    ' && echo "$version" && modinfo -k "$newest" -F license $module && break; done'
)
"""Shell: version and licence of the module for the kernel ``$newest``; ``$version`` afterwards."""
LIBRARY = (
    "library=$(ldconfig -p | sed -n 's/^[[:space:]]*libnvidia-ml.so.1 (libc6,.*=> //p'"
    ' | head -n 1); [ "$library" ] && readlink -f "$library"'
)
"""Shell: the file of libnvidia-ml, whose name ends in its version."""


def newest_kernel(root: str = "") -> str:
    """Shell: the release of the kernel that boots next; ``root`` is a prefix, for tests."""
    return (
        f"$(for m in {root}/lib/modules/*; do"
        f' [ -e {root}/boot/vmlinuz-"${{m##*/}}" ] && echo "${{m##*/}}"; done'
        " | sort -V | tail -n 1)"
    )


@dataclass(frozen=True)
class PciCard:
    """A display device of vendor 10de in sysfs, there with or without a driver.

    ``address`` as ``0000:01:00.0``; ``device`` and ``subsystem`` in lower-case hex (``2204``,
    ``1043:87b3``); link speeds in GT/s, widths in lanes, 0 where the link is down; ``numa_node``
    is -1 where the machine has one node; ``driver`` is the kernel driver bound to it.
    """

    address: str
    device: str
    subsystem: str
    link_width: int
    link_width_max: int
    link_speed: float
    link_speed_max: float
    iommu_group: int | None
    numa_node: int
    driver: str | None
    boot_vga: bool


@dataclass(frozen=True)
class SmiCard:
    """A card in ``nvidia-smi``; None where the driver or the card has no value.

    Power in W, memory in MiB. ``address`` is lower case with a four-digit domain, as in sysfs.
    ``throttle`` is the bit mask of ``clocks_event_reasons.active``. ``recovery_action`` is
    the driver's text, ``"None"`` if no action is needed.
    """

    index: int
    name: str
    uuid: str
    address: str
    device: str
    vbios: str | None
    compute_capability: str | None
    driver_version: str
    persistence: bool | None
    link_generation: int | None
    link_generation_max: int | None
    link_width: int | None
    link_width_max: int | None
    power_limit_w: float | None
    power_default_w: float | None
    power_min_w: float | None
    power_max_w: float | None
    memory_total_mib: int | None
    memory_used_mib: int | None
    display_active: bool | None
    ecc: bool | None
    mig: bool | None
    recovery_action: str | None
    throttle: int | None
    remapped_rows_pending: bool | None
    remapped_rows_failed: bool | None


@dataclass(frozen=True)
class DriverState:
    """The driver in memory, on disk and in user space, and the kernel that boots next.

    ``on_disk`` and ``on_disk_flavour`` are of the module that ``newest_kernel`` would load; None if
    it has none. ``library`` is the version of libnvidia-ml. ``secure_boot`` is None if the firmware
    does not support it.
    """

    loaded: str | None = None
    loaded_flavour: Flavour | None = None
    on_disk: str | None = None
    on_disk_flavour: Flavour | None = None
    library: str | None = None
    running_kernel: str = ""
    newest_kernel: str = ""
    nouveau_loaded: bool = False
    secure_boot: bool | None = None


@dataclass(frozen=True)
class Xid:
    """An error the driver wrote to the kernel's log; ``this_boot``: since the last one."""

    address: str
    code: int
    text: str
    this_boot: bool


@dataclass(frozen=True)
class BusErrors:
    """AER errors of one card since boot, as sysfs counts them (``aer_dev_correctable`` ...)."""

    address: str
    correctable: int
    non_fatal: int
    fatal: int


@dataclass(frozen=True)
class Picture:
    """All data of the cards of one machine. ``smi`` is None if ``nvidia-smi`` is not installed or
    failed before it listed a card; ``smi_exit`` its exit status (nvidia-smi(1): 6 no such device, 8
    external power missing, 9 driver not loaded, 12 library not found, 15 fell off the bus, 18
    driver and library versions differ; 124 and 137: it hung), None where it is not installed;
    ``smi_said`` its error text. ``links`` is ``nvidia-smi topo -m`` between cards: two addresses,
    and ``NV12``, ``PIX``, ``PHB``, ``SYS`` or the like. ``nvswitches`` counts NVSwitch bridges in
    sysfs.
    """

    pci: tuple[PciCard, ...] = ()
    smi: tuple[SmiCard, ...] | None = None
    smi_exit: int | None = None
    smi_said: str = ""
    driver: DriverState = DriverState()
    xids: tuple[Xid, ...] = ()
    bus_errors: tuple[BusErrors, ...] = ()
    links: tuple[tuple[str, str, str], ...] = ()
    nvswitches: int = 0


SMI_FIELDS = {
    "index": "index",
    "name": "name",
    "uuid": "uuid",
    "address": "pci.bus_id",
    "device": "pci.device_id",
    "vbios": "vbios_version",
    "compute_capability": "compute_cap",
    "driver_version": "driver_version",
    "persistence": "persistence_mode",
    "link_generation": "pcie.link.gen.current",
    "link_generation_max": "pcie.link.gen.max",
    "link_width": "pcie.link.width.current",
    "link_width_max": "pcie.link.width.max",
    "power_limit_w": "power.limit",
    "power_default_w": "power.default_limit",
    "power_min_w": "power.min_limit",
    "power_max_w": "power.max_limit",
    "memory_total_mib": "memory.total",
    "memory_used_mib": "memory.used",
    "display_active": "display_active",
    "ecc": "ecc.mode.current",
    "mig": "mig.mode.current",
    "recovery_action": "gpu_recovery_action",
    "throttle": "clocks_event_reasons.active",
    "throttle_before_535": "clocks_throttle_reasons.active",
    "remapped_rows_pending": "remapped_rows.pending",
    "remapped_rows_failed": "remapped_rows.failure",
}
"""Fields of ``nvidia-smi --query-gpu``, by their names here; requested if it supports them."""

_ADDRESS = re.compile(r"([0-9a-fA-F]{4,8}):([0-9a-fA-F]{2}):([0-9a-fA-F]{2})(?:\.([0-7]))?")
_XID = re.compile(r"NVRM: Xid \(PCI:([0-9a-fA-F:.]+)\): (\d+),? *(.*)")
_FELL_OFF = re.compile(r"NVRM: The NVIDIA GPU ([0-9a-fA-F:.]+)\b.*fallen off the bus", re.DOTALL)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def parse(answers: dict[str, list[str]]) -> Picture:
    """The picture from the answers to the queries of `facts.gpu.GpuPicture`, by query.

    Never raises: an unreadable value is None, and an unreadable card is not listed.
    """
    devices = _devices(answers.get("pci", []))
    smi, smi_exit, smi_said = _smi(answers.get("smi", []))
    return Picture(
        pci=tuple(_pci_card(device) for device in devices if device["class"].startswith("0x03")),
        smi=smi,
        smi_exit=smi_exit,
        smi_said=smi_said,
        driver=_driver(answers),
        xids=tuple(_xids(answers.get("journal", []), _first(answers, "boot"))),
        bus_errors=tuple(_bus_errors(d) for d in devices if d["class"].startswith("0x03")),
        links=tuple(_links(answers.get("topology", []), smi or ())),
        nvswitches=sum(device["class"].startswith("0x0680") for device in devices),
    )


def address_of(text: str) -> str | None:
    """The PCI address in ``text`` as sysfs writes it; None if there is none.

    The driver writes eight digits of domain, upper-case hex, and leaves the function out at times:
    ``00000000:2D:00.0`` and ``0000:2D:00`` are both ``0000:2d:00.0``.
    """
    match = _ADDRESS.search(text)
    if match is None:
        return None
    domain, bus, device, function = match.groups()
    return f"{int(domain, 16):04x}:{bus}:{device}.{function or 0}".lower()


def _first(answers: dict[str, list[str]], name: str) -> str:
    return next(iter(answers.get(name, [])), "").strip()


def _number(text: str) -> float | None:
    """A number of sysfs or nvidia-smi, with or without a unit; None if it is not a number."""
    match = re.match(r"-?\d+(\.\d+)?", text.strip())
    return float(match.group()) if match else None


def _whole(text: str) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _mask(text: str) -> int | None:
    return int(text, 16) if re.fullmatch(r"0x[0-9a-fA-F]+", text) else None


def _truth(text: str) -> bool | None:
    if text.lower() in ("enabled", "yes", "1"):
        return True
    return False if text.lower() in ("disabled", "no", "0") else None


def _text(text: str) -> str | None:
    # "[N/A]", "[Not Supported]", "[Unknown Error]", "[GPU requires reset]" and the like.
    return None if not text or text.startswith("[") or text == "N/A" else text


def _devices(lines: list[str]) -> list[dict[str, str]]:
    devices: list[dict[str, str]] = []
    for line in lines:
        if line.startswith("device="):
            devices.append({"address": line.removeprefix("device="), "class": ""})
        elif devices:
            name, _, value = line.partition(":")
            # The last line of an AER file is the total, and is kept.
            devices[-1][name] = value.strip()
    return devices


def _pci_card(device: dict[str, str]) -> PciCard:
    def hexadecimal(name: str) -> str:
        return device.get(name, "").removeprefix("0x").lower()

    def width(name: str) -> int:
        # A device that no longer answers reads as all ones: 63 lanes.
        lanes = _whole(device.get(name, "")) or 0
        return lanes if lanes <= 32 else 0

    numa_node = _whole(device.get("numa_node", ""))
    return PciCard(
        address=device["address"],
        device=hexadecimal("device"),
        subsystem=f"{hexadecimal('subsystem_vendor')}:{hexadecimal('subsystem_device')}",
        link_width=width("current_link_width"),
        link_width_max=width("max_link_width"),
        link_speed=_number(device.get("current_link_speed", "")) or 0.0,
        link_speed_max=_number(device.get("max_link_speed", "")) or 0.0,
        iommu_group=_whole(device.get("iommu_group", "")),
        numa_node=-1 if numa_node is None else numa_node,
        driver=device.get("driver") or None,
        boot_vga=device.get("boot_vga") == "1",
    )


def _bus_errors(device: dict[str, str]) -> BusErrors:
    def total(name: str) -> int:
        return _whole(device.get(f"aer_dev_{name}", "").rpartition(" ")[2]) or 0

    return BusErrors(device["address"], total("correctable"), total("nonfatal"), total("fatal"))


def _smi(lines: list[str]) -> tuple[tuple[SmiCard, ...] | None, int | None, str]:
    """Cards, exit status and other output of nvidia-smi."""
    fields: list[str] = []
    status: int | None = None
    cards: list[SmiCard] = []
    said: list[str] = []
    for line in lines:
        if line.startswith("fields "):
            fields = line.removeprefix("fields ").split(",")
        elif line.startswith("exit "):
            status = _whole(line.removeprefix("exit "))
        elif line.strip():
            values = [value.strip() for value in line.split(",")]
            card = _smi_card(dict(zip(fields, values, strict=False)))
            if card is not None and len(values) == len(fields):
                cards.append(card)
            else:
                said.append(line.strip())
    listed = cards or status == 0
    return tuple(cards) if listed else None, status, "\n".join(said)


def _smi_card(row: dict[str, str]) -> SmiCard | None:
    values = {name: row.get(field, "") for name, field in SMI_FIELDS.items()}
    index, address = _whole(values["index"]), address_of(values["address"])
    if index is None or address is None:
        return None
    throttle = _mask(values["throttle"])
    return SmiCard(
        index=index,
        name=_text(values["name"]) or "",
        uuid=_text(values["uuid"]) or "",
        address=address,
        # 0x220410DE: the device, then the vendor.
        device=values["device"].removeprefix("0x")[:4].lower() if _mask(values["device"]) else "",
        vbios=_text(values["vbios"]),
        compute_capability=_text(values["compute_capability"]),
        driver_version=_text(values["driver_version"]) or "",
        persistence=_truth(values["persistence"]),
        link_generation=_whole(values["link_generation"]),
        link_generation_max=_whole(values["link_generation_max"]),
        link_width=_whole(values["link_width"]),
        link_width_max=_whole(values["link_width_max"]),
        power_limit_w=_number(values["power_limit_w"]),
        power_default_w=_number(values["power_default_w"]),
        power_min_w=_number(values["power_min_w"]),
        power_max_w=_number(values["power_max_w"]),
        memory_total_mib=_whole(values["memory_total_mib"]),
        memory_used_mib=_whole(values["memory_used_mib"]),
        display_active=_truth(values["display_active"]),
        ecc=_truth(values["ecc"]),
        mig=_truth(values["mig"]),
        recovery_action=_text(values["recovery_action"]),
        throttle=_mask(values["throttle_before_535"]) if throttle is None else throttle,
        remapped_rows_pending=_truth(values["remapped_rows_pending"]),
        remapped_rows_failed=_truth(values["remapped_rows_failed"]),
    )


def _driver(answers: dict[str, list[str]]) -> DriverState:
    running_flavour = _first(answers, "loaded-flavour")
    on_disk, licence = [*answers.get("on-disk", []), "", ""][:2]
    library = re.search(r"libnvidia-ml\.so\.(\d+\.[\d.]+)$", _first(answers, "library"))
    # Four bytes of attributes, then the variable.
    secure_boot = _first(answers, "secure-boot").split()
    return DriverState(
        loaded=_first(answers, "loaded") or None,
        loaded_flavour=_flavour(running_flavour, "Open Kernel Module"),
        on_disk=on_disk or None,
        on_disk_flavour=_flavour(licence, "MIT"),
        library=library.group(1) if library else None,
        running_kernel=_first(answers, "running-kernel"),
        newest_kernel=_first(answers, "newest-kernel"),
        nouveau_loaded=bool(answers.get("nouveau")),
        secure_boot=secure_boot[4] == "1" if len(secure_boot) == 5 else None,
    )


def _flavour(text: str, open_mark: str) -> Flavour | None:
    if not text:
        return None
    return "open" if open_mark in text else "proprietary"


def _xids(lines: list[str], boot: str) -> Iterator[Xid]:
    for line in lines:
        try:
            entry = json.loads(line)
            message = entry["MESSAGE"]
            this_boot = entry["_BOOT_ID"] == boot.replace("-", "")
            match, fell_off = _XID.search(message), _FELL_OFF.search(message)
        except (ValueError, KeyError, TypeError):
            continue
        if match:
            address, code, text = match.groups()
            yield Xid(address_of(address) or address, int(code), text, this_boot)
        elif fell_off:
            # The log names a card that falls off the bus during probing without an Xid.
            address = fell_off.group(1)
            text = "fallen off the bus, found when the driver was loaded"
            yield Xid(address_of(address) or address, 79, text, this_boot)


def _links(lines: list[str], cards: tuple[SmiCard, ...]) -> Iterator[tuple[str, str, str]]:
    """Each pair of cards once; the matrix has a row and a column per card, then network cards."""
    addresses = {f"GPU{card.index}": card.address for card in cards}
    rows = [_COLOUR.sub("", line).split() for line in lines]
    columns = [cell for cell in next(iter(rows), []) if cell.startswith("GPU") and cell != "GPU"]
    for row in rows[1:]:
        if not row or row[0] not in addresses:
            continue
        for column, kind in zip(columns, row[1:], strict=False):
            if column in addresses and columns.index(column) > columns.index(row[0]):
                yield addresses[row[0]], addresses[column], kind
