"""Engines: a pinned environment for each server, and an engine for each declared model."""

from __future__ import annotations

from dataclasses import replace

from pyinfra.api.deploy import deploy

from holdfast.engines.units import (
    configuration,
    devices,
    every,
    programs,
    recovery,
    undo,
)
from holdfast.host_programs import gpu_memory
from holdfast.host_programs import replace as replacement
from holdfast.settings import HostSettings
from operations import engines, host_files, program, units


@deploy("Engines")
def apply(settings: HostSettings) -> None:
    """Install the server of every declared engine, and start the engine.

    Loading a model takes minutes, so `settle` waits for it at the end of a deploy.
    """
    declared = programs(settings)
    if not declared:
        return
    program.install("the engines", declared)
    configurations = [(names, configuration(settings, names)) for names in every(settings)]
    beside = [recovery(), devices(), undo()]
    program.place(
        what="the engines",
        programs=[*beside, *declared],
        files=[*map(host_files.program, (gpu_memory, replacement))],
    )
    engines.configured(name="Tell each engine what to serve", engines=configurations)
    # Their doors open when they answer.
    started = [replace(each, proxied=None) for each in declared if each.proxied]
    units.settle(
        name="Start the engines",
        units=[units.NO_OTHER_PROXY, *program.settled([*beside, *started])],
        # A card, or a share of it, may move from one engine to another.
        together=True,
        wait=False,
    )


@deploy("Engines, their doors")
def settle(settings: HostSettings) -> None:
    """Wait until every declared engine answers a request, then open its doors."""
    declared = programs(settings)
    if not declared:
        return
    # A port may move from one engine to another.
    program.settle("Have the engines running", declared, together=True)
    program.prune(declared)
