"""What a machine shows of its NVIDIA cards: one typed picture from sysfs, driver and journal.

The types are what acceptance and the deploys decide on; the parsers below them turn the output of
`facts.gpu` into them and touch no machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Flavour = Literal["open", "proprietary"]


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
    """A card as ``nvidia-smi`` tells it; None where the driver or the card does not know.

    Power in W, memory in MiB. ``address`` is lower case with a four-digit domain, as in sysfs.
    ``clock_limit_mhz`` is the highest graphics clock that was locked, None when not locked or not
    known. ``throttle`` is the bit mask of ``clocks_event_reasons.active``.
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
    """The driver in memory, on disk and in user space, and what the machine would boot next.

    ``on_disk`` and ``on_disk_flavour`` are of the module that ``newest_kernel`` would load; None
    where it has none. ``library`` is the version of libnvidia-ml. ``secure_boot`` is None where
    the firmware has no such thing.
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
    """Everything about the cards of one machine.

    ``smi`` is None where ``nvidia-smi`` is not installed or failed; ``smi_exit`` its exit status
    (nvidia-smi(1): 6 no such device, 8 external power missing, 9 driver not loaded, 12 library
    not found, 15 fell off the bus, 18 driver and library versions differ), None where it is not
    installed; ``smi_said`` its error text. ``links`` is ``nvidia-smi topo -m`` between cards: two
    addresses, and ``NV12``, ``PIX``, ``PHB``, ``SYS`` or the like. ``nvswitches`` counts
    NVSwitch bridges in sysfs.
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
