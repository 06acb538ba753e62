"""Modes on a host: remove undeclared ones, and keep one of each set active."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.gpu_modes import GpuModes
from facts.units import UnitStates
from holdfast.gpu.modes import DROP_IN, PRESENT, target
from holdfast.settings import CardSet
from operations import units
from operations.units import Unit


@operation()
def only(declared: list[str]) -> Generator[StringCommand, None, None]:
    """Remove every file of modes that is not in ``declared``. A service that is no longer in a mode
    keeps running.

    For example::

        gpu_modes.only(name="Have no other mode", declared=[file.path for file in files])
    """
    stray = sorted(set(host.get_fact(GpuModes).files) - set(declared))
    if not stray:
        return
    freed = [path for path in stray if path.endswith(DROP_IN)]
    ended = [path.rpartition("/")[2] for path in stray if path.endswith(".target")]
    steps = [f"rm -f {' '.join(map(shlex.quote, freed))}", "systemctl daemon-reload"]
    if ended:
        names = " ".join(map(shlex.quote, ended))
        steps.append(f"systemctl disable --now {names}")
    rest = [path for path in stray if path not in freed]
    steps += [f"rm -f {' '.join(map(shlex.quote, rest))}", "systemctl daemon-reload"]
    yield StringCommand(" && ".join(steps))


@operation()
def in_force(card_sets: list[CardSet], services: list[str]) -> Generator[StringCommand, None, None]:
    """Keep the active mode of each set, or activate the default.

    Expects the units on disk. ``services`` are the units of all services in modes, whether they
    exist or not; none of them is started or stopped by name.

    For example::

        gpu_modes.in_force(
            name="Have one mode in force",
            card_sets=settings.gpus.card_sets,
            services=["chat.service"],
        )
    """
    states = host.get_fact(UnitStates, watched={name: [] for name in services})
    if any(state.needs_reload for state in states.values()):
        # Reload now: a service does not restart because it became part of a mode.
        yield StringCommand("systemctl daemon-reload")
    found = host.get_fact(GpuModes).modes
    wanted = []
    for card_set in card_sets:
        known = [mode.name for mode in card_set.modes]
        present = found.get(card_set.name, "")
        if present not in known:
            present = card_set.default
            record = shlex.quote(f"{PRESENT}/{card_set.name}")
            yield StringCommand(f"umask 022; mkdir -p {PRESENT} && echo {present} > {record}")
        wanted += [
            Unit(target(name), enabled=name == card_set.default, running=name == present)
            for name in known
        ]
    yield from units.settle._inner(units=wanted)
