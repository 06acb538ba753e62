"""Known data of cards by PCI device id.

It contains only data that an owner of the card has published, with its source. Other cards may also
be declared: then the data comes from the driver, and errors are found only after its installation.

Sources:

- ``telegraf``: ``nvidia-smi -q -x`` of owners in github.com/influxdata/telegraf,
  ``plugins/inputs/nvidia_smi/testdata`` (``rtx-3060-v12.xml``, ``3090-v13.xml``)
- ``gls``: ``nvidia-smi -a`` in github.com/thamada/gls (``RTX5090_smi.py``, ``H200_smi.py``)
- ``k8s``: ``nvidia-smi -q -x`` of real machines in github.com/NVIDIA/k8s-test-infra,
  ``tests/e2e/go/assertions/nvidiasmi/testdata/hardware`` (2026-08-21)
- ``pci.ids``: the PCI ID repository, for ids of the same card
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from holdfast.settings import GpuCard, HostSettings

Architecture = Literal["Ampere", "Hopper", "Blackwell"]

VRAM_TOLERANCE = 0.01
"""The reserved memory of one model differs a little by driver and VBIOS."""


@dataclass(frozen=True)
class Known:
    """One model: memory in MiB as ``nvidia-smi`` counts it, power in W, ``lanes`` of PCIe.

    ``vram_mib`` is None if one id is sold with several sizes. ``power_default_w`` is NVIDIA's;
    makers of GeForce cards may set more, and choose the highest limit themselves: then
    ``power_max_w`` is None. ``surge_w`` is the highest published power of spikes of 5 to 10 ms,
    None if unknown.
    """

    name: str
    architecture: Architecture
    vram_mib: int | None
    power_default_w: int
    power_min_w: int
    power_max_w: int | None = None
    surge_w: int | None = None
    lanes: int = 16


# telegraf; the id 2487 is on GA104, 2503 and 2504 on GA106, by pci.ids.
_RTX_3060 = Known("NVIDIA GeForce RTX 3060", "Ampere", 12288, 170, 100)

KNOWN: dict[str, Known] = {
    "2487": _RTX_3060,
    "2503": _RTX_3060,
    "2504": _RTX_3060,
    # telegraf. Surge: what the owner of eight of them saw of each.
    "2204": Known("NVIDIA GeForce RTX 3090", "Ampere", 24576, 350, 100, surge_w=450),
    # gls: 400 W is the least it takes. Surge: Igor's Lab, GeForce RTX 5090 Founders Edition,
    # 2025-01: 627 W for 10 to 20 ms, 738 W for 5 to 10 ms, 901 W for less than 1 ms.
    "2b85": Known("NVIDIA GeForce RTX 5090", "Blackwell", 32607, 575, 400, surge_w=738),
    # github.com/b00nz/mVolt/issues/39 (180 W, 150 W); lanes: NVIDIA's specification.
    "2d04": Known("NVIDIA GeForce RTX 5060 Ti", "Blackwell", None, 180, 150, lanes=8),
    # k8s, each of these.
    "20b0": Known("NVIDIA A100-SXM4-40GB", "Ampere", 40960, 400, 100, 400),
    "2330": Known("NVIDIA H100 80GB HBM3", "Hopper", 81559, 700, 200, 700),
    "2901": Known("NVIDIA B200", "Blackwell", 183359, 1000, 200, 1000),
    # gls
    "2335": Known("NVIDIA H200", "Hopper", 143771, 700, 200, 700),
}
"""By PCI device id in lower-case hex."""


def name_of(device: str) -> str:
    """The name of a card for a message; its id if the model is unknown."""
    known = KNOWN.get(device)
    return f"{known.name} ({device})" if known else f"NVIDIA card 10de:{device}"


def declared_cards(settings: HostSettings) -> dict[str, GpuCard]:
    """The declared cards of a host by name; none where it has none."""
    return {card.name: card for card in settings.gpus.cards} if settings.gpus else {}
