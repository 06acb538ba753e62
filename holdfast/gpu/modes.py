"""Modes of sets of cards, from settings only.

A mode is a systemd target that wants its services. A service in a mode stops with the last mode
that wants it, and is not enabled itself.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from facts.gpu_modes import DROP_IN, PROGRAM
from facts.places import SYSTEM
from holdfast import undoing
from holdfast.engines.units import RECORDS as ENGINE_RECORDS
from holdfast.engines.units import REPLACE_PROGRAM, EngineNames, every
from holdfast.gpu import limits
from holdfast.gpu.cards import declared_cards
from holdfast.gpu.targets import sets, target, targets_of
from holdfast.host_programs import mode as mode_program
from holdfast.host_programs.mode import CardSet, Check, Tenant
from holdfast.render import render
from holdfast.sandbox import RUN
from holdfast.service import Program
from holdfast.settings import LOOPBACK_OF, Gpus, HealthCheck, HostSettings, Service

CONFIG = mode_program.CONFIG
PRESENT = mode_program.PRESENT


def engine_names(settings: HostSettings) -> dict[str, EngineNames]:
    """The declared engines, by name."""
    return {names.engine.name: names for names in every(settings)}


def unit(settings: HostSettings, name: str) -> str:
    """The unit of an engine or a declared service, by its name."""
    engines = engine_names(settings)
    if name in engines:
        return engines[name].unit
    return next(service.unit for service in settings.services if service.name == name)


def service_units(settings: HostSettings) -> list[str]:
    """The units of all services in modes, each once."""
    names = [
        name for card_set in sets(settings) for mode in card_set.modes for name in mode.services
    ]
    return [unit(settings, name) for name in dict.fromkeys(names)]


def in_force(gpus: Gpus, present: Mapping[str, str]) -> Gpus:
    """The cards with their limits in the modes ``present`` (set to mode)."""
    defaults = {card_set.name: card_set.default for card_set in gpus.card_sets}
    # The same rule as in the program on the host.
    limited = limits.declared(gpus, {**defaults, **present})
    caps = {card.name: card.power_cap_w for card in limited}
    cards = [
        card.model_copy(update={"power_cap_w": caps.get(card.name, card.power_cap_w)})
        for card in gpus.cards
    ]
    return gpus.model_copy(update={"cards": cards})


def every_moment(gpus: Gpus) -> Iterator[Gpus]:
    """The cards with their limits, once for every combination of modes."""
    names = [[mode.name for mode in card_set.modes] for card_set in gpus.card_sets]
    for chosen in itertools.product(*names):
        present = dict(zip([card_set.name for card_set in gpus.card_sets], chosen, strict=True))
        yield in_force(gpus, present)


def _check(check: HealthCheck | None) -> Check | None:
    return Check(check.url, check.contains, check.timeout_seconds) if check else None


def _uuids(settings: HostSettings, names: list[str]) -> tuple[str, ...]:
    known = declared_cards(settings)
    return tuple(uuid for name in names if name in known and (uuid := known[name].uuid))


def _engine(settings: HostSettings, names: EngineNames) -> Tenant:
    engine = names.engine
    uuids = _uuids(settings, engine.cards)
    return Tenant(
        name=engine.name,
        unit=names.unit,
        cards=uuids,
        hold=(REPLACE_PROGRAM, engine.name, "--hold"),
        release=(REPLACE_PROGRAM, engine.name, "--release"),
        memory=(f"{engine.utilisation:g}", *uuids) if uuids else (),
    )


def _service(settings: HostSettings, service: Service) -> Tenant:
    uuids = _uuids(settings, service.cards)
    return Tenant(
        name=service.name,
        unit=service.unit,
        cards=uuids,
        memory=(f"{service.gpu_mib}MiB", *uuids) if uuids and service.gpu_mib else (),
        idle=_check(service.idle),
        health=_check(service.health),
    )


def tenants(settings: HostSettings) -> Iterator[Tenant]:
    """Every service that claims memory of a card or is in a mode, for the host's program."""
    for names in every(settings):
        if names.engine.cards or targets_of(settings, names.engine.name):
            yield _engine(settings, names)
    for service in settings.services:
        if service.gpu_mib or targets_of(settings, service.name):
            yield _service(settings, service)


def config(settings: HostSettings) -> str:
    """The configuration of the host's program."""
    known = declared_cards(settings)
    told = [
        CardSet(
            name=card_set.name,
            cards={known[name].uuid or name: name for name in card_set.cards},
            default=card_set.default,
            modes={mode.name: mode.services for mode in card_set.modes},
            targets={mode.name: target(mode.name) for mode in card_set.modes},
        )
        for card_set in sets(settings)
    ]
    house = {
        "sets": [asdict(card_set) for card_set in told],
        "tenants": [asdict(tenant) for tenant in tenants(settings)],
    }
    return json.dumps(house, indent=1) + "\n"


def records(settings: HostSettings) -> str:
    """Sets the defaults at every boot."""
    return render("gpu_modes/records.conf.j2", sets=sets(settings), folder=PRESENT)


def greeting() -> str:
    """The script that prints the modes at a login."""
    return render("gpu_modes/greeting.j2", program=PROGRAM)


def undo() -> Program:
    """What undoes a switch of modes that was killed; it checks services of every tier."""
    return undoing.undo(
        mode_program.UNDO_UNIT.format(""),
        what="the switch of modes of %i",
        command=(PROGRAM, "--undo", "%i"),
        writes=(RUN, *ENGINE_RECORDS),
        others="doors are their services' own",
        calls=[f"{own}/32" for own in LOOPBACK_OF.values()],
    )


def units(settings: HostSettings) -> dict[str, str]:
    """Path to text of the modes' targets, and of the drop-ins of their services."""
    found = {}
    for card_set in sets(settings):
        for index, mode in enumerate(card_set.modes):
            every = [target(one.name) for one in card_set.modes]
            found[f"{SYSTEM}/{target(mode.name)}"] = render(
                "gpu_modes/mode.target.j2",
                card_set=card_set,
                mode=mode,
                others=every[:index] + every[index + 1 :],
                # Their order does not matter: units stop before others start.
                earlier=every[:index],
                services=[unit(settings, name) for name in mode.services],
            )
            for name in mode.services:
                path = f"{SYSTEM}/{unit(settings, name)}.d/{DROP_IN}"
                found[path] = render("gpu_modes/service.conf.j2")
    return found
