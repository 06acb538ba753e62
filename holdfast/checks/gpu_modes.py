"""Modes that contradict the cards or the services."""

from __future__ import annotations

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.checks.gpu import cap_of, own_card
from holdfast.engines.servers import declared_engines
from holdfast.gpu.cards import declared_cards
from holdfast.refusal import MISSING
from holdfast.settings import CardSet, HostSettings, Mode


def modes(settings: HostSettings) -> Findings:
    """Sets, modes and services that contradict one another."""
    sets = settings.gpus.card_sets if settings.gpus else []
    holders: dict[str, str] = {}
    names: dict[str, str] = {}
    for index, card_set in enumerate(sets):
        key = f"gpus.card_sets[{index}]"
        yield from _cards(key, card_set, holders, settings)
        known = {mode.name for mode in card_set.modes}
        if card_set.default not in known:
            mend = nearest(card_set.default, known)
            yield Finding(f"{key}.default", card_set.default, "the set has no such mode", mend)
        for place, mode in enumerate(card_set.modes):
            at = f"{key}.modes[{place}]"
            if names.setdefault(mode.name, card_set.name) != card_set.name:
                yield Finding(
                    f"{at}.name",
                    mode.name,
                    f"{names[mode.name]} has a mode of this name, and the switch takes only"
                    " the mode's name",
                    "rename one",
                )
            yield from _caps(at, mode, card_set, settings)
            yield from _services(at, mode, index, settings)
    yield from _claims(settings)


def _cards(
    key: str, card_set: CardSet, holders: dict[str, str], settings: HostSettings
) -> Findings:
    for place, name in enumerate(card_set.cards):
        at = f"{key}.cards[{place}]"
        why = "without it the release of its memory cannot be checked"
        yield from own_card(at, name, settings, why)
        holder = holders.setdefault(name, card_set.name)
        if holder != card_set.name:
            wrong = f"it is in the set {holder} too, and a card can be in one set only"
            yield Finding(at, name, wrong, "name it in one set")


def _caps(key: str, mode: Mode, card_set: CardSet, settings: HostSettings) -> Findings:
    declared = declared_cards(settings)
    for name, cap in mode.power_caps_w.items():
        at = f"{key}.power_caps_w.{name}"
        if name not in card_set.cards:
            wrong = f"{card_set.name} has no such card"
            yield Finding(at, cap, wrong, nearest(name, set(card_set.cards)))
        elif name in declared:
            yield from cap_of(at, cap, declared[name])


def _services(key: str, mode: Mode, index: int, settings: HostSettings) -> Findings:
    gpus = settings.gpus
    engines = {engine.name: engine.cards for engine in declared_engines(settings)}
    services = {service.name: service for service in settings.services}
    cards = {**{name: one.cards for name, one in services.items()}, **engines}
    for place, name in enumerate(mode.services):
        at = f"{key}.services[{place}]"
        if name not in cards:
            wrong = "no engine or declared service has this name"
            if name == "floor":
                yield Finding(at, name, "the floor runs in every mode", "remove it")
            else:
                yield Finding(at, name, wrong, nearest(name, set(cards)))
            continue
        if name in services and name in engines:
            yield Finding(at, name, "an engine and a service share this name", "rename one")
            continue
        others = [
            one.name
            for one in (gpus.card_sets if gpus else [])[:index]
            if any(name in other.services for other in one.modes)
        ]
        of_set = set(gpus.card_sets[index].cards) if gpus else set()
        declared = declared_cards(settings).keys()
        # An undeclared card has its own finding.
        outside = [card for card in cards[name] if card in declared - of_set and of_set <= declared]
        if others:
            wrong = f"it is also in a mode of {others[0]}, and either set could stop it"
            yield Finding(at, name, wrong, "name it in the modes of one set")
        elif outside:
            wrong = f"it uses {outside[0]}, which is not in this set"
            yield Finding(at, name, wrong, "put all cards of a service into one set")
        shared = [
            other.name
            for other in registry.declared_services(settings)
            if name in services and other.unit == services[name].unit and other.name != name
        ]
        if shared:
            wrong = f"its unit {services[name].unit} also belongs to {shared[0]}"
            yield Finding(at, name, wrong, "give it its own unit, which a mode can stop")


def _claims(settings: HostSettings) -> Findings:
    """Services with wrong cards, or without a claim on them."""
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        for place, name in enumerate(service.cards):
            why = "an index may be another card after a reboot"
            yield from own_card(f"{key}.cards[{place}]", name, settings, why)
        if service.cards and not service.gpu_mib:
            wrong = "the service names cards but claims no memory"
            yield Finding(
                f"{key}.gpu_mib", MISSING, wrong, "write the MiB that it uses of each card"
            )
