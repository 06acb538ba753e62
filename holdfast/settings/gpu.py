"""The settings under ``gpus``: cards, power supplies, and what is done with them.

For example::

    "gpus": {
        "cards": [
            {
                "name": "left",
                "device": "2204",
                "vram_mib": 24576,
                "uuid": "GPU-00000000-0000-4000-8000-000000000001",
                "pci_address": "0000:01:00.0",
                "power_cap_w": 280,
            },
            {"name": "guest", "device": "2204", "vram_mib": 24576, "role": "passthrough"},
        ],
        "machine_w": 250,
        "power_supplies": [{"name": "psu", "watts": 2000}],
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.gpu_driver import GpuDriver
from holdfast.settings.gpu_modes import CardSet
from holdfast.settings.sources import AptRepository
from holdfast.types import GpuUuid, Model, Name, PciAddress, PciDevice, Watts


class GpuCard(Model):
    """One NVIDIA card that must be there, as its owner bought and plugged it."""

    name: Name
    """What its owner calls it, for every message: the slot, the riser, the shelf."""
    device: PciDevice
    """Which card it is: ``2204`` is a GeForce RTX 3090."""
    vram_mib: int = Field(ge=1024)
    """Memory as ``nvidia-smi`` counts it, MiB; cards reserve a little, so 1 % is tolerated."""
    uuid: GpuUuid | None = None
    """The one card meant, once known (`make gpus`); what a cap or an engine is tied to."""
    pci_address: PciAddress | None = None
    """The slot it is in, once known."""
    link_width: Literal[1, 2, 4, 8, 16] = 16
    """PCIe lanes that its slot and riser give it."""
    power_cap_w: Watts | None = None
    """Power limit, W, within the card's own range; its default when absent."""
    clock_max_mhz: int | None = Field(default=None, ge=210, le=4000)
    """Highest graphics clock, MHz: for cards whose lowest power limit is still too much."""
    role: Literal["compute", "passthrough"] = "compute"
    """``passthrough`` belongs to a guest: bound to vfio-pci, and no driver here touches it."""


class PowerSupply(Model):
    """One power supply and the cards that hang on it."""

    name: Name
    watts: int = Field(ge=100, le=20000)
    """What its label promises, W."""
    cards: list[Name] = []
    """Cards it feeds; empty: whichever no other supply names."""


class Gpus(Model):
    """The machine's NVIDIA cards, believed only after a check."""

    cards: list[GpuCard] = Field(min_length=1)
    driver: GpuDriver = GpuDriver()
    power_supplies: list[PowerSupply] = []
    """Empty: the power budget is not checked."""
    machine_w: int = Field(default=200, ge=0)
    """What the machine draws beside its cards, from the first supply, W."""
    card_sets: list[CardSet] = []
    """Cards whose services take turns; empty: everything runs at once."""
    containers: bool = True
    """Whether containers may use the cards (NVIDIA's container toolkit, by CDI)."""
    container_toolkit_repository: AptRepository | None = None
    """A mirror of the vendor's repository of the container toolkit."""
