"""The ``gpus`` block of an inventory for a live machine, ready to paste."""

from __future__ import annotations

from collections.abc import Iterator
from typing import get_args

from facts.gpu_picture import PciCard, Picture, SmiCard
from holdfast.gpu.cards import KNOWN
from holdfast.settings import GpuCard, Gpus

_WIDTHS = get_args(GpuCard.model_fields["link_width"].annotation)


def proposal(host: str, picture: Picture) -> str:
    """The cards of ``host`` as Python; a sentence if it has none.

    Nothing is refused: a suspicious value gets a comment, because only the owner knows what was
    bought and where it was plugged.
    """
    if not picture.pci:
        return f"# {host}: no NVIDIA card answers on its PCI bus."
    count = f"{len(picture.pci)} card{'' if len(picture.pci) == 1 else 's'}"
    driver = f"driver {picture.driver.loaded}" if picture.driver.loaded else "no driver loaded"
    seen = {card.address: card for card in picture.smi or ()}
    lines = [
        f"# {host}: {count}, {driver}. Its power supplies cannot be seen: declare them.",
        '"gpus": {',
        '    "cards": [',
    ]
    for card in picture.pci:
        lines.append("        {")
        lines += [f"            {line}" for line in _card(card, seen.get(card.address))]
        lines.append("        },")
    return "\n".join([*lines, "    ],", "},"])


def declared(picture: Picture) -> Gpus:
    """The proposal as settings: the cards declared as they are now, with default driver.

    Raises ValueError if there is no card, or if the memory of a card is unknown.
    """
    seen = {card.address: card for card in picture.smi or ()}
    return Gpus(cards=[_declared(card, seen.get(card.address)) for card in picture.pci])


def _declared(card: PciCard, smi: SmiCard | None) -> GpuCard:
    known = KNOWN.get(card.device)
    width = card.link_width if card.link_width in _WIDTHS else 16
    return GpuCard.model_validate(
        {
            "name": _name(card),
            "device": card.device,
            "vram_mib": (smi and smi.memory_total_mib) or (known.vram_mib if known else 0),
            "uuid": (smi and smi.uuid) or None,
            "pci_address": card.address,
            "link_width": width,
            "power_cap_w": _cap(smi) if smi else None,
            "role": "passthrough" if card.driver == "vfio-pci" else "compute",
        }
    )


def _name(card: PciCard) -> str:
    domain, bus, _ = card.address.split(":")
    return f"gpu-{bus if domain == '0000' else f'{domain}-{bus}'}"


def _card(card: PciCard, smi: SmiCard | None) -> Iterator[str]:
    what = smi.name if smi else "not seen by a driver"
    yield f'"name": "{_name(card)}",  # {what}; name it after its slot, riser or shelf'
    yield f'"device": "{card.device}",'
    if smi and smi.memory_total_mib:
        yield f'"vram_mib": {smi.memory_total_mib},'
    else:
        yield '"vram_mib": 0,  # not known until a driver sees it: write what was bought'
    if smi and smi.uuid:
        yield f'"uuid": "{smi.uuid}",'
    yield f'"pci_address": "{card.address}",'
    yield _link_width(card)
    if smi and (cap := _cap(smi)):
        default = smi.power_default_w
        yield f'"power_cap_w": {cap},  # as it is set now; its default is {default:.0f}'
    if card.driver == "vfio-pci":
        yield '"role": "passthrough",'


def _link_width(card: PciCard) -> str:
    if card.link_width not in _WIDTHS:
        return '"link_width": 16,  # its link is down now: write what its slot gives'
    line = f'"link_width": {card.link_width},'
    if card.link_width < card.link_width_max:
        line += f"  # the card can do x{card.link_width_max}: is this what slot and riser give?"
    return line


def _cap(smi: SmiCard) -> int | None:
    """The limit if it is not the default, W."""
    limit, default = smi.power_limit_w, smi.power_default_w
    if limit is None or default is None or round(limit) == round(default):
        return None
    return round(limit)
