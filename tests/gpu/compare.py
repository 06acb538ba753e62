"""What the facts say of a card against what `nvidia-smi -q -x` says: two programs, one truth."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

from facts.gpu_picture import Picture, SmiCard, address_of

_FIELDS: dict[str, tuple[str, Callable[[str], object]]]


@dataclass(frozen=True)
class Compared:
    """One value of one card, seen twice; ``same`` where both agree or the report lacks it."""

    card: str
    field: str
    ours: object
    theirs: object

    @property
    def same(self) -> bool:
        """Whether both say the same; watts agree to a tenth."""
        if isinstance(self.ours, float) and isinstance(self.theirs, float):
            return abs(self.ours - self.theirs) < 0.1
        return self.ours == self.theirs


def _number(text: str) -> float | None:
    match = re.match(r"-?\d+(\.\d+)?", text)
    return float(match.group()) if match else None


def _whole(text: str) -> int | None:
    number = _number(text)
    return None if number is None else int(number)


def _switch(text: str) -> bool | None:
    return {"Enabled": True, "Disabled": False, "Yes": True, "No": False}.get(text)


def _word(text: str) -> str | None:
    return None if text in ("N/A", "") else text


_FIELDS = {
    "name": ("product_name", str),
    "uuid": ("uuid", str),
    "vbios": ("vbios_version", _word),
    "persistence": ("persistence_mode", _switch),
    "display_active": ("display_active", _switch),
    "link_generation_max": ("pci/pci_gpu_link_info/pcie_gen/max_link_gen", _whole),
    "link_width": ("pci/pci_gpu_link_info/link_widths/current_link_width", _whole),
    "link_width_max": ("pci/pci_gpu_link_info/link_widths/max_link_width", _whole),
    "power_limit_w": ("gpu_power_readings/current_power_limit", _number),
    "power_default_w": ("gpu_power_readings/default_power_limit", _number),
    "power_min_w": ("gpu_power_readings/min_power_limit", _number),
    "power_max_w": ("gpu_power_readings/max_power_limit", _number),
    "memory_total_mib": ("fb_memory_usage/total", _whole),
    "ecc": ("ecc_mode/current_ecc", _switch),
    "mig": ("mig_mode/current_mig", _switch),
}
"""Field of `SmiCard` to its place in the report; only what stands still between two readings."""


def compared(picture: Picture, report: str) -> Iterator[Compared]:
    """Every field of every card that either of them lists."""
    root = ElementTree.fromstring(report)
    listed: dict[str | None, ElementTree.Element] = {
        address_of(gpu.get("id", "")): gpu for gpu in root.iter("gpu")
    }
    ours = {card.address: card for card in picture.smi or ()}
    for address in sorted({*ours, *filter(None, listed)}):
        if address not in ours or address not in listed:
            yield Compared(address, "card", address in ours, address in listed)
            continue
        yield from _card(ours[address], listed[address])
        driver = root.findtext("driver_version", "")
        yield Compared(address, "driver_version", ours[address].driver_version, driver)


def _card(card: SmiCard, gpu: ElementTree.Element) -> Iterator[Compared]:
    for field, (path, read) in _FIELDS.items():
        text = gpu.findtext(path)
        # Drivers before 535 call the section power_readings, and name its limits otherwise.
        if text is not None:
            yield Compared(card.address, field, getattr(card, field), read(text.strip()))
