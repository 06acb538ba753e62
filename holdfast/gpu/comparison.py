"""Match declared cards with those of the machine, and find the stage that each one reached."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

from facts.gpu_picture import PciCard, Picture, SmiCard, Xid
from holdfast.settings import GpuCard, Gpus

FELL_OFF = 79
"""The Xid of a card that no longer answers on its bus."""


@dataclass(frozen=True)
class Comparison:
    """Declared cards beside sysfs and ``nvidia-smi``.

    ``memory_claimed``: whether services of this host may hold GPU memory.
    """

    gpus: Gpus
    picture: Picture
    memory_claimed: bool = True

    @cached_property
    def smi(self) -> dict[str, SmiCard]:
        """The driver's cards, by address."""
        return {card.address: card for card in self.picture.smi or ()}

    @cached_property
    def matched(self) -> list[tuple[GpuCard, PciCard | None]]:
        """Every declared card with its match on the bus.

        A UUID identifies the card and decides first; then model and address together, or the model
        if no address is declared. The rest is paired by model, then by address, then in any order,
        so that a card in the wrong place is one difference and not two.
        """
        left = list(self.picture.pci)
        places = {card.uuid: card.address for card in self.smi.values() if card.uuid}
        found: dict[str, PciCard] = {}
        rules: list[Callable[[GpuCard, PciCard], bool]] = [
            lambda card, pci: places.get(card.uuid or "") == pci.address,
            lambda card, pci: card.device == pci.device and card.pci_address == pci.address,
            lambda card, pci: card.device == pci.device and card.pci_address is None,
            lambda card, pci: card.device == pci.device,
            lambda card, pci: card.pci_address == pci.address,
            lambda card, pci: card.pci_address is None,
        ]
        for rule in rules:
            for card in self.gpus.cards:
                if card.name in found:
                    continue
                pci = next((pci for pci in left if rule(card, pci)), None)
                if pci is not None:
                    found[card.name] = pci
                    left.remove(pci)
        return [(card, found.get(card.name)) for card in self.gpus.cards]

    @cached_property
    def fallen(self) -> dict[str, Xid]:
        """Cards that fell off the bus in this boot, by name; some are still in sysfs."""
        events = {xid.address: xid for xid in self._xids if xid.code == FELL_OFF}
        places = {card.name: pci.address if pci else card.pci_address for card, pci in self.matched}
        return {name: events[place] for name, place in places.items() if place in events}

    @cached_property
    def present(self) -> list[tuple[GpuCard, PciCard]]:
        """Cards that answer on the bus and are of the declared model."""
        return [
            (card, pci)
            for card, pci in self.matched
            if pci and card.device == pci.device and card.name not in self.fallen
        ]

    @cached_property
    def driven(self) -> list[tuple[GpuCard, SmiCard]]:
        """Present compute cards that the driver lists."""
        return [
            (card, self.smi[pci.address])
            for card, pci in self.present
            if card.role == "compute" and pci.address in self.smi
        ]

    @cached_property
    def undriven(self) -> list[tuple[GpuCard, PciCard]]:
        """Present compute cards that no other driver holds and NVIDIA's does not list."""
        return [
            (card, pci)
            for card, pci in self.present
            if card.role == "compute"
            and pci.address not in self.smi
            and pci.driver not in ("vfio-pci", "nouveau")
        ]

    def xids(self, codes: Collection[int]) -> list[tuple[GpuCard, Xid]]:
        """Errors of this boot with one of ``codes``, of present cards, oldest first."""
        cards = {pci.address: card for card, pci in self.present}
        return [
            (cards[xid.address], xid)
            for xid in self._xids
            if xid.code in codes and xid.address in cards
        ]

    @cached_property
    def _xids(self) -> list[Xid]:
        return [xid for xid in self.picture.xids if xid.this_boot]
