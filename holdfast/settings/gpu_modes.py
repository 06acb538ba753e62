"""The settings under ``gpus.card_sets``: cards that services use in turn.

For example::

    "gpus": {
        "cards": [
            {"name": "left", "device": "2204", "vram_mib": 24576},
            {"name": "right", "device": "2204", "vram_mib": 24576},
        ],
        "card_sets": [
            {
                "name": "desk",
                "cards": ["left", "right"],
                "modes": [
                    {"name": "agent", "services": ["chat"]},
                    {"name": "creative", "services": ["painter"], "power_caps_w": {"left": 340}},
                ],
                "default": "agent",
            }
        ],
    }
"""

from __future__ import annotations

from pydantic import Field

from holdfast.types import Model, Name, Watts


class Mode(Model):
    """The services and power limits of a set of cards in this mode."""

    name: Name = Field(max_length=24)
    """The argument of `holdfast-mode`; no two modes of a host share it."""
    services: list[Name] = []
    """Engines and declared services that run in it. A service that no mode of the set names
    runs in all modes. An empty list leaves the cards free for any program."""
    power_caps_w: dict[Name, Watts] = {}
    """Card to power limit in this mode, W; other cards keep their own."""


class CardSet(Model):
    """Cards that are in one mode at a time."""

    name: Name = Field(max_length=24)
    cards: list[Name] = Field(min_length=1)
    """Cards declared under ``gpus.cards``; a card belongs to one set."""
    modes: list[Mode] = Field(min_length=2)
    """Exactly one is active."""
    default: Name
    """The mode after every boot."""
