"""The power budget: the load of each power supply, and its limit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from holdfast.gpu.cards import KNOWN
from holdfast.settings import GpuCard, Gpus, PowerSupply

SUSTAINED_SHARE = 0.8
"""Share of the label for continuous load. The label is for a new supply in cool air, and cards
reach their limits only on average. 80 % is the limit for a circuit under continuous load (NEC
210.20), which we use for the supply too."""

SURGE_SHARE = 1.35
"""Share of the label for 10 ms: a supply without a 12VHPWR connector must carry it by Intel's ATX
3.0 design guide (table 3-3; 160 % with one). Older supplies guarantee nothing."""

SURGE_FACTOR = 1.3
"""Share of the default limit for cards without a measurement: an RTX 3090 has 450 / 350, an RTX
5090 738 / 575 (see `cards`)."""

NO_LIMITS: Mapping[str, float] = MappingProxyType({})


@dataclass(frozen=True)
class Load:
    """The load of one supply, W. ``unknown`` are cards whose power is not known yet."""

    supply: PowerSupply
    cards: tuple[str, ...]
    sustained_w: float
    surge_w: float
    unknown: tuple[str, ...] = ()

    @property
    def sustained_limit_w(self) -> float:
        """Its limit for continuous load."""
        return self.supply.watts * SUSTAINED_SHARE

    @property
    def surge_limit_w(self) -> float:
        """Its limit for surges."""
        return self.supply.watts * SURGE_SHARE


@dataclass(frozen=True)
class Fault:
    """The error of one supply. ``wrong`` and ``mend`` as in `holdfast.refusal.Refusal`."""

    supply: str
    wrong: str
    mend: str


def fed(gpus: Gpus) -> dict[str, tuple[str, ...]]:
    """The cards on each supply, by the supply's name."""
    named = {card for supply in gpus.power_supplies for card in supply.cards}
    rest = [card.name for card in gpus.cards if card.name not in named]
    return {supply.name: tuple(supply.cards or rest) for supply in gpus.power_supplies}


def loads(gpus: Gpus, limits: Mapping[str, float] = NO_LIMITS) -> list[Load]:
    """The load of each supply; ``limits`` are default limits from the cards, W."""
    cards = {card.name: card for card in gpus.cards}
    feeding = fed(gpus)
    return [
        _load(
            supply,
            [cards[name] for name in feeding[supply.name] if name in cards],
            limits,
            gpus.machine_w if index == 0 else 0,
        )
        for index, supply in enumerate(gpus.power_supplies)
    ]


def _load(
    supply: PowerSupply, cards: list[GpuCard], limits: Mapping[str, float], others_w: int
) -> Load:
    sustained, surge, unknown = float(others_w), float(others_w), []
    for card in cards:
        known = KNOWN.get(card.device)
        default = limits.get(card.name) or (known.power_default_w if known else None)
        limit = card.power_cap_w or default
        if limit is None:
            unknown.append(card.name)
            continue
        sustained += limit
        # A limit applies to the average over far more than 10 ms, so it does not reduce spikes.
        usual = SURGE_FACTOR * (default or limit)
        surge += max(known.surge_w if known and known.surge_w else usual, limit)
    names = tuple(card.name for card in cards)
    return Load(supply, names, sustained, surge, tuple(unknown))


def faults(gpus: Gpus, limits: Mapping[str, float] = NO_LIMITS) -> list[Fault]:
    """The errors of the supplies; none if none is declared. ``limits`` as in `loads`.

    Loads are checked only if the supply of each card is clear, and for cards with known power.
    """
    return list(_wiring(gpus)) or list(_overloads(gpus, limits))


def _wiring(gpus: Gpus) -> Iterator[Fault]:
    supplies = gpus.power_supplies
    cards = {card.name for card in gpus.cards}
    holders: dict[str, str] = {}
    for supply in supplies:
        for card in supply.cards:
            holder = holders.setdefault(card, supply.name)
            if card not in cards:
                yield Fault(
                    supply.name,
                    f"it feeds {card}, and no card of this name is declared",
                    "write the name of a declared card",
                )
            elif holder != supply.name:
                yield Fault(
                    supply.name,
                    f"it feeds {card}, and so does {holder}",
                    "name each card once; one card on two supplies connects their grounds and"
                    " currents",
                )
    left = sorted(cards - set(holders))
    unnamed = [supply.name for supply in supplies if not supply.cards]
    if left and len(unnamed) > 1:
        yield Fault(
            unnamed[1],
            f"neither it nor {unnamed[0]} names its cards, so the supply of {', '.join(left)}"
            " is unknown",
            "name the cards of each, or declare supplies that share one load as one",
        )
    elif supplies and left and not unnamed:
        yield Fault(
            supplies[-1].name,
            f"every supply names its cards, and none names {', '.join(left)}",
            "write which supply feeds it",
        )


def _overloads(gpus: Gpus, limits: Mapping[str, float]) -> Iterator[Fault]:
    for index, load in enumerate(loads(gpus, limits)):
        drawers = f"{_counted(load.cards)}{' and the machine' if index == 0 else ''}"
        label = f"{load.supply.watts} W"
        if load.sustained_w > load.sustained_limit_w:
            yield Fault(
                load.supply.name,
                f"{drawers} draw {load.sustained_w:.0f} W by their limits, and a supply of {label}"
                f" carries {load.sustained_limit_w:.0f} W continuously",
                "lower power_cap_w, or connect fewer cards to it",
            )
        elif load.surge_w > load.surge_limit_w:
            yield Fault(
                load.supply.name,
                f"{drawers} surge to {load.surge_w:.0f} W for milliseconds despite caps, and a"
                f" supply of {label} carries {load.surge_limit_w:.0f} W",
                "connect fewer cards to it, or use a larger supply",
            )


def _counted(cards: tuple[str, ...]) -> str:
    return "its card" if len(cards) == 1 else f"its {len(cards)} cards"


def table(gpus: Gpus) -> str:
    """The budget, one line for each supply; empty if none is declared."""
    lines = []
    for load in loads(gpus):
        drawn = (
            f"unknown: {', '.join(load.unknown)}"
            if load.unknown
            else f"{load.sustained_w:6.0f} of {load.sustained_limit_w:6.0f} W"
            f"   surge {load.surge_w:6.0f} of {load.surge_limit_w:6.0f} W"
        )
        lines.append(
            f"{load.supply.name:16} {load.supply.watts:6} W  cards {len(load.cards):2}   {drawn}"
        )
    return "\n".join(lines)
