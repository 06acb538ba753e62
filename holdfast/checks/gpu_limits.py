"""Limits that cannot be set."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.settings import HostSettings


def limits(settings: HostSettings) -> Findings:
    """Limits of a card that has no identity."""
    for index, card in enumerate(settings.gpus.cards if settings.gpus else []):
        if card.role != "compute" or card.uuid or card.pci_address:
            continue
        for field in ("power_cap_w", "clock_max_mhz"):
            if (limit := getattr(card, field)) is not None:
                yield Finding(
                    f"gpus.cards[{index}].{field}",
                    limit,
                    f"nothing identifies the card {card.name}",
                    "give its uuid, or first its pci_address (`holdfast gpus` shows both)",
                )
