"""The settings under ``gpus``: cards and power supplies.

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
    """One NVIDIA card that must be present."""

    name: Name
    """Its name in every message: choose the slot, the riser, the shelf."""
    device: PciDevice
    """The model: ``2204`` is a GeForce RTX 3090."""
    vram_mib: int = Field(ge=1024)
    """Memory in ``nvidia-smi``, MiB; cards reserve a little, so a difference of 1 % is accepted."""
    uuid: GpuUuid | None = None
    """Identifies the card for caps and engines, once known (`holdfast gpus`)."""
    pci_address: PciAddress | None = None
    """Its slot, once known."""
    link_width: Literal[1, 2, 4, 8, 16] = 16
    """PCIe lanes of its slot and riser."""
    power_cap_w: Watts | None = None
    """Power limit within the card's own range, W; default: the card's own."""
    clock_max_mhz: int | None = Field(default=None, ge=210, le=4000)
    """Highest graphics clock, MHz, for cards whose lowest power limit is too high."""
    role: Literal["compute", "passthrough"] = "compute"
    """``passthrough``: the card belongs to a guest and is bound to vfio-pci; this host's driver
    does not use it."""


class PowerSupply(Model):
    """One power supply and its cards."""

    name: Name
    watts: int = Field(ge=100, le=20000)
    """The figure on its label, W."""
    cards: list[Name] = []
    """Cards that it feeds; empty: all cards that no other supply names."""


class Gpus(Model):
    """The machine's NVIDIA cards. A deploy compares them with the hardware."""

    cards: list[GpuCard] = Field(min_length=1)
    driver: GpuDriver = GpuDriver()
    power_supplies: list[PowerSupply] = []
    """Empty: the power budget is not checked."""
    machine_w: int = Field(default=200, ge=0)
    """Power of the machine without its cards, from the first supply, W."""
    card_sets: list[CardSet] = []
    """Cards that services use in turn; empty: all services run at once."""
    containers: bool = True
    """Whether containers may use the cards (NVIDIA's container toolkit, by CDI)."""
    container_toolkit_repository: AptRepository | None = None
    """A mirror of the vendor's repository of the container toolkit."""
