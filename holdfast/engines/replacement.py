"""Another model for one engine, asked for by hand: what the settings are then, or why not."""

from __future__ import annotations

from holdfast.checks import engines
from holdfast.checks.finding import nearest
from holdfast.engines.servers import declared_engines
from holdfast.refusal import Refusal, Refused
from holdfast.settings import HostSettings


def with_model(
    hosts: dict[str, HostSettings], engine_name: str, model: str
) -> dict[str, HostSettings]:
    """The hosts that have an engine of this name, with its checkpoint replaced.

    Raises:
        Refused: no host has it, or the model cannot be served so.
    """
    changed = {name: _changed(settings, engine_name, model) for name, settings in hosts.items()}
    found = {name: settings for name, settings in changed.items() if settings is not None}
    if not found:
        known = {
            engine.name for settings in hosts.values() for engine in declared_engines(settings)
        }
        wrong = "no host of the inventory declares such an engine"
        raise Refused(
            [Refusal("inventory", "ENGINE", engine_name, wrong, nearest(engine_name, known))]
        )
    refusals = [
        Refusal(name, *finding)
        for name, settings in found.items()
        for finding in engines.engines(settings)
    ]
    if refusals:
        raise Refused(refusals)
    return found


def _changed(settings: HostSettings, engine_name: str, model: str) -> HostSettings | None:
    for name, declared in settings.servers.items():
        if engine_name in [engine.name for engine in declared.engines]:
            update = [
                engine.model_copy(
                    update={"checkpoint": model} if engine.name == engine_name else {}
                )
                for engine in declared.engines
            ]
            changed = declared.model_copy(update={"engines": update})
            return settings.model_copy(update={name: changed})
    return None
