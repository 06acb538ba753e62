"""The targets of modes, by name: what a service of a mode runs along with."""

from __future__ import annotations

from holdfast.settings import CardSet, HostSettings


def sets(settings: HostSettings) -> list[CardSet]:
    """The sets of cards of a host."""
    return settings.gpus.card_sets if settings.gpus else []


def target(mode: str) -> str:
    """The unit of a mode."""
    return f"holdfast-mode-{mode}.target"


def targets_of(settings: HostSettings, service: str) -> list[str]:
    """The targets that want an engine or a service; empty if it always runs."""
    return [
        target(mode.name)
        for card_set in sets(settings)
        for mode in card_set.modes
        if service in mode.services
    ]
