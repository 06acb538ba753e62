"""Bring systemd units to a state: enabled, running, and started after their files last changed.

The decision is taken from the host's state, not from what this run changed: a run that died
between writing a file and restarting its service is mended by the next one.
"""

from __future__ import annotations

import shlex
from collections.abc import Generator
from dataclasses import dataclass, field, replace

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.host_files import PathStates
from facts.places import SYSTEM
from facts.units import UnitState, UnitStates
from holdfast.doors import Door

_FORGIVE = "systemctl reset-failed {} 2>/dev/null"
"""A start that is ours does not count towards the unit's start limit."""


@dataclass(frozen=True)
class Unit:
    """A unit as it should be.

    ``restart_after`` names files that are read at start: the unit is restarted when one is newer
    than its last start. ``reload`` reloads instead, where the unit can. ``masked`` overrides all.
    None for ``enabled`` and ``running`` leaves a unit that is not ours as its owner has it.
    ``along_with`` names targets: the unit runs while one of them does, and is not enabled itself.
    """

    name: str
    enabled: bool | None = True
    running: bool | None = True
    restart_after: list[str] = field(default_factory=list)
    reload: bool = False
    masked: bool = False
    along_with: list[str] = field(default_factory=list)


NO_OTHER_PROXY = Unit("haproxy.service", masked=True)
"""HAProxy's own unit: ours are the only proxies, and the package's would run with nothing to do."""


def of_door(door: Door, configuration: str) -> list[Unit]:
    """A door's units, which run while it is open; its proxy reads ``configuration``."""
    return [
        Unit(
            unit,
            enabled=door.is_open,
            running=door.is_open,
            restart_after=[f"{SYSTEM}/{unit}", configuration],
        )
        for unit in (door.socket, door.service)
    ]


def _outdated(unit: Unit, state: UnitState) -> bool:
    # A reload leaves the start time as it was, but it is a change of state.
    read_at = state.changed if unit.reload else state.started
    return read_at is not None and (state.newest_watched or 0) > read_at


_ON_ITS_WAY = "activating"


def _is_running(state: UnitState) -> bool:
    return state.active in ("active", _ON_ITS_WAY, "reloading")


def _must_restart(unit: Unit, state: UnitState) -> bool:
    may_run = unit.running is not False and not unit.masked and _is_running(state)
    return may_run and (state.needs_reload or _outdated(unit, state))


def _unread(unit: Unit, state: UnitState) -> bool:
    # A unit file that was just written is unknown until systemd looks again.
    wanted = (unit.enabled or unit.running) and not unit.masked
    return state.needs_reload or (bool(wanted) and state.load == "not-found")


def without(stray: list[str]) -> Generator[StringCommand, None, None]:
    """Remove files that are not declared; units among them are stopped and disabled before."""
    if not stray:
        return
    paths = " ".join(map(shlex.quote, stray))
    units = [path.rpartition("/")[2] for path in stray if path.startswith(f"{SYSTEM}/")]
    if not units:
        yield StringCommand(f"rm -f {paths}")
        return
    names = " ".join(map(shlex.quote, units))
    # Read again first: what was written and never read can be neither stopped nor disabled.
    yield StringCommand(
        f"systemctl daemon-reload && systemctl stop {names} && systemctl disable {names}"
        f" && rm -f {paths} && systemctl daemon-reload"
    )


def _with_its_targets(unit: Unit, states: dict[str, UnitState]) -> Unit:
    if not unit.along_with:
        return unit
    running = any(_is_running(states[target]) for target in unit.along_with)
    return replace(unit, enabled=False, running=running)


@operation()
def absent(files: list[str]) -> Generator[StringCommand, None, None]:
    """Have none of these files; units among them are stopped and disabled before."""
    states = host.get_fact(PathStates, paths=files)
    yield from without([path for path in files if path in states])


@operation()
def settle(
    units: list[Unit], together: bool = False, wait: bool = True
) -> Generator[StringCommand, None, None]:
    """Reload systemd when a unit file changed, then enable, start, restart or stop each unit.

    ``together`` stops all that must be restarted before the first of them starts again: for units
    that may have to give each other a port or memory. Without ``wait`` their starts are requested
    at once and go on beside what the deploy does next; a later `settle` of the same units waits
    for them, and fails where one of them does.
    """
    block = "" if wait else "--no-block "
    watched = {unit.name: unit.restart_after for unit in units}
    # An automount is restarted for its mount's file, which systemd must have read before.
    beside = {
        path.rpartition("/")[2]
        for paths in watched.values()
        for path in paths
        if path.rpartition("/")[0] == SYSTEM
    }
    beside |= {target for unit in units for target in unit.along_with}
    asked = {**{name: [] for name in sorted(beside)}, **watched}
    states = host.get_fact(UnitStates, watched=asked)
    units = [_with_its_targets(unit, states) for unit in units]
    if any(states[name].needs_reload for name in beside) or any(
        _unread(unit, states[unit.name]) for unit in units
    ):
        yield StringCommand("systemctl daemon-reload")

    # What must not run goes before anything comes that may want its port or its memory.
    ending = [
        unit.name
        for unit in units
        if unit.running is False and not unit.masked and _is_running(states[unit.name])
    ]
    stale = [unit.name for unit in units if _must_restart(unit, states[unit.name])]
    if stopped := [*ending, *(stale if together else [])]:
        yield StringCommand(f"systemctl stop {' '.join(map(shlex.quote, stopped))}")
    for unit in units:
        state = states[unit.name]
        name = shlex.quote(unit.name)
        if unit.masked:
            if state.file_state != "masked":
                yield StringCommand(f"systemctl mask --now {name}")
            continue
        if state.load == "masked" and unit.enabled is not None:
            yield StringCommand(f"systemctl unmask {name}")
        is_enabled = state.file_state in ("enabled", "static", "alias", "indirect", "generated")
        if unit.enabled and not is_enabled:
            yield StringCommand(f"systemctl enable {name}")
        elif unit.enabled is False and state.file_state == "enabled":
            yield StringCommand(f"systemctl disable {name}")
        if unit.running and not _is_running(state):
            yield StringCommand(f"{_FORGIVE.format(name)}; systemctl start {block}{name}")
        elif _must_restart(unit, state):
            verb = "reload-or-restart" if unit.reload and not state.needs_reload else "restart"
            yield StringCommand(f"{_FORGIVE.format(name)}; systemctl {verb} {block}{name}")
        elif unit.running and wait and state.active == _ON_ITS_WAY:
            # Joins the start that is under way, and fails with it.
            yield StringCommand(f"systemctl start {name}")
