"""The description of a rack without cards, which fake NVML and fake sysfs both tell from.

``rack("rtx3090", "rtx3090")`` is a machine with two cards, ``known("rack9x3090")`` one that an
inventory is written for. Change what you like, `Rack.write` it, and NVML answers so from its next
call on. README.md says what is modelled.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Kind = Literal["rtx3060", "rtx3090", "rtx5090", "h100", "h200"]
KernelDriver = Literal["nvidia", "nouveau", "vfio-pci"]
State = Literal["well", "lost", "unpowered", "gone"]

DRIVER_VERSION = "580.95.05"
KERNEL_TELLS = "/sys/module/nvidia/version"
"""``Driver.loaded`` where a real module named nvidia is loaded and unloaded."""

_FIRST_BUS = 0x41
"""Above the buses that a virtual machine's own devices are on."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Driver(_Part):
    """The driver: ``library`` is the version of user space, ``loaded`` that of the kernel module.

    ``loaded`` may be None (NVML says that no driver is loaded), differ from ``library`` (version
    mismatch), or be `KERNEL_TELLS`.
    """

    library: str = DRIVER_VERSION
    loaded: str | None = DRIVER_VERSION
    cuda: int = 13000


class Power(_Part):
    """Watts. ``draw_w`` is what the card takes where no limit holds it back."""

    min_w: float
    default_w: float
    max_w: float
    draw_w: float = 20.0


class Clocks(_Part):
    """MHz, now and at most."""

    graphics_mhz: int = 210
    memory_mhz: int = 405
    max_graphics_mhz: int
    max_memory_mhz: int


class Link(_Part):
    """PCIe: generation and lanes, now and at most, and the replay counter."""

    generation: int = 1
    generation_max: int = 4
    width: int = 16
    width_max: int = 16
    replays: int = 0


class Memory(_Part):
    """MiB, as ``nvidia-smi`` counts."""

    total_mib: int
    reserved_mib: int = 300
    used_mib: int = 2


class Utilisation(_Part):
    """Per cent of the time."""

    gpu: int = 0
    memory: int = 0


class RemappedRows(_Part):
    """Rows of memory that were replaced, as data-centre cards count them."""

    correctable: int = 0
    uncorrectable: int = 0
    pending: bool = False
    failed: bool = False


class BusErrors(_Part):
    """AER errors since boot, which sysfs counts."""

    correctable: int = 0
    nonfatal: int = 0
    fatal: int = 0


class Process(_Part):
    """A process that holds memory of the card, MiB."""

    pid: int
    memory_mib: int
    kind: Literal["compute", "graphics"] = "compute"


class Card(_Part):
    """One card; ``address``, ``device`` and ``subsystem`` as `facts.gpu_picture.PciCard`.

    ``state``: ``lost`` has fallen off the bus while the driver was loaded, ``gone`` was not there
    at the last boot, ``unpowered`` lacks its auxiliary power. ``persistence`` is the mode after the
    driver was loaded: true where nvidia-persistenced runs. ``throttle`` is the mask of clocks
    event reasons; ``recovery_action`` is NVML's number, 0 for none. None: the card has no such
    thing. ``nvlinks`` are links into NVSwitches.
    """

    name: str
    uuid: str
    address: str
    device: str
    subsystem: str
    vbios: str
    architecture: int
    compute_capability: str
    power: Power
    clocks: Clocks
    memory: Memory
    link: Link = Field(default_factory=Link)
    state: State = "well"
    driver: KernelDriver | None = "nvidia"
    serial: str | None = None
    persistence: bool = False
    display_active: bool = False
    temperature_c: int = 33
    performance_state: int = 8
    utilisation: Utilisation = Field(default_factory=Utilisation)
    throttle: int = 1
    recovery_action: int = 0
    ecc: bool | None = None
    mig: bool | None = None
    remapped_rows: RemappedRows | None = None
    processes: list[Process] = []
    nvlinks: int = 0
    pci_class: Literal["0x030000", "0x030200"] = "0x030000"
    numa_node: int = -1
    iommu_group: int | None = None
    boot_vga: bool = False
    bus_errors: BusErrors = Field(default_factory=BusErrors)


class Rack(_Part):
    """A machine. ``administrator`` is the uid that may change settings: root on a real one."""

    cards: list[Card]
    driver: Driver = Field(default_factory=Driver)
    nvswitches: int = 0
    administrator: int = 0

    def write(self, path: Path) -> None:
        """Write the description whole or not at all: programs may be reading it."""
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(self.model_dump_json(indent=1))
        fresh.chmod(0o644)
        fresh.replace(path)


# Identifiers from the PCI ID repository; ranges and memory as nvidia-smi tells them in public
# reports of such cards (recorded/gpu has some), clocks likewise. A 3090's highest limit is its
# maker's choice.
_KINDS: dict[Kind, dict[str, Any]] = {
    "rtx3060": {
        "name": "NVIDIA GeForce RTX 3060",
        "device": "2504",
        "subsystem": "1458:4074",
        "vbios": "94.06.25.00.EE",
        "architecture": 7,
        "compute_capability": "8.6",
        "power": Power(min_w=100, default_w=170, max_w=170, draw_w=13),
        "clocks": Clocks(max_graphics_mhz=2100, max_memory_mhz=7501),
        "memory": Memory(total_mib=12288),
    },
    "rtx3090": {
        "name": "NVIDIA GeForce RTX 3090",
        "device": "2204",
        "subsystem": "10de:1454",
        "vbios": "94.02.42.40.A2",
        "architecture": 7,
        "compute_capability": "8.6",
        "power": Power(min_w=100, default_w=350, max_w=366, draw_w=25),
        "clocks": Clocks(max_graphics_mhz=2100, max_memory_mhz=9751),
        "memory": Memory(total_mib=24576),
    },
    "rtx5090": {
        "name": "NVIDIA GeForce RTX 5090",
        "device": "2b85",
        "subsystem": "1569:f318",
        "vbios": "98.02.2E.40.61",
        "architecture": 10,
        "compute_capability": "12.0",
        "power": Power(min_w=400, default_w=575, max_w=600, draw_w=30),
        "clocks": Clocks(max_graphics_mhz=3090, max_memory_mhz=14001),
        "memory": Memory(total_mib=32607),
        "link": Link(generation_max=5),
    },
    "h100": {
        "name": "NVIDIA H100 80GB HBM3",
        "device": "2330",
        "subsystem": "10de:16c1",
        "vbios": "96.00.99.00.01",
        "architecture": 9,
        "compute_capability": "9.0",
        "power": Power(min_w=200, default_w=700, max_w=700, draw_w=70),
        "clocks": Clocks(
            graphics_mhz=345, memory_mhz=2619, max_graphics_mhz=1980, max_memory_mhz=2619
        ),
        "memory": Memory(total_mib=81559),
        "link": Link(generation=5, generation_max=5),
        "serial": "1650000000000",
        "performance_state": 0,
        "ecc": True,
        "mig": False,
        "remapped_rows": RemappedRows(),
        "pci_class": "0x030200",
    },
    "h200": {
        "name": "NVIDIA H200",
        "device": "2335",
        "subsystem": "10de:18be",
        "vbios": "96.00.A5.00.03",
        "architecture": 9,
        "compute_capability": "9.0",
        "power": Power(min_w=200, default_w=700, max_w=700, draw_w=75),
        "clocks": Clocks(
            graphics_mhz=345, memory_mhz=3201, max_graphics_mhz=1980, max_memory_mhz=3201
        ),
        "memory": Memory(total_mib=143771),
        "link": Link(generation=5, generation_max=5),
        "serial": "1650000000001",
        "performance_state": 0,
        "ecc": True,
        "mig": False,
        "remapped_rows": RemappedRows(),
        "pci_class": "0x030200",
    },
}

KNOWN: dict[str, tuple[Kind, ...]] = {
    "rtx3060": ("rtx3060",),
    "rack9x3090": ("rtx3090",) * 9,
    "quad3090": ("rtx3090",) * 4,
    "octo3090": ("rtx3090",) * 8,
    "blackwell5090": ("rtx5090",),
    "dualstack": ("rtx5090", "rtx3060"),
    "hgx8xh100": ("h100",) * 8,
    "h200": ("h200",),
}


def card(kind: Kind, slot: int = 0, **changes: Any) -> Card:
    """A healthy, idle card in slot number ``slot``, which decides its address and its UUID."""
    address = f"0000:{_FIRST_BUS + slot:02x}:00.0"
    identity = {
        "uuid": f"GPU-{uuid.uuid5(uuid.NAMESPACE_OID, f'{kind} {slot}')}",
        "address": address,
        "iommu_group": 20 + slot,
    }
    parts = {
        name: part.model_copy() if isinstance(part, BaseModel) else part
        for name, part in _KINDS[kind].items()
    }
    return Card(**(parts | identity | changes))


def rack(*kinds: Kind) -> Rack:
    """A machine with these cards, one a slot."""
    return Rack(cards=[card(kind, slot) for slot, kind in enumerate(kinds)])


def known(name: str) -> Rack:
    """The rack of a reference inventory, by its name in `KNOWN`."""
    found = rack(*KNOWN[name])
    if name == "hgx8xh100":
        found.nvswitches = 4
        for slot, sxm in enumerate(found.cards):
            sxm.nvlinks, sxm.numa_node = 18, slot // 4
    return found
