"""Set the state of systemd units: enabled, running, and started after the last change of their
files.

It depends on the host's state, not on the changes of this run. So the next run completes a run that
died between writing a file and restarting its service.
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

_FORGIVE = "systemctl reset-failed {} 2>/dev/null"
"""A start by a deploy does not count towards the unit's start limit."""


@dataclass(frozen=True)
class Unit:
    """The wanted state of a unit.

    ``restart_after`` names files that are read at start: the unit is restarted if one is newer than
    its last start. ``reload`` reloads it instead, if the unit supports it. ``masked`` overrides
    all. None for ``enabled`` and ``running`` does not change the unit. ``along_with`` names
    targets: the unit runs while one of them runs, and is not enabled itself.
    """

    name: str
    enabled: bool | None = True
    running: bool | None = True
    restart_after: list[str] = field(default_factory=list)
    reload: bool = False
    masked: bool = False
    along_with: list[str] = field(default_factory=list)


NO_OTHER_PROXY = Unit("haproxy.service", masked=True)
"""HAProxy's own unit, masked because only our own proxies are used."""


def _outdated(unit: Unit, state: UnitState) -> bool:
    # A reload keeps the start time, but it is a change of state.
    read_at = state.changed if unit.reload else state.started
    return read_at is not None and (state.newest_watched or 0) > read_at


_ON_ITS_WAY = "activating"


def _is_running(state: UnitState) -> bool:
    return state.active in ("active", _ON_ITS_WAY, "reloading")


def _must_restart(unit: Unit, state: UnitState) -> bool:
    may_run = unit.running is not False and not unit.masked and _is_running(state)
    return may_run and (state.needs_reload or _outdated(unit, state))


def _unread(unit: Unit, state: UnitState) -> bool:
    # systemd does not know a new unit file before a reload.
    wanted = (unit.enabled or unit.running) and not unit.masked
    return state.needs_reload or (bool(wanted) and state.load == "not-found")


def without(stray: list[str]) -> Generator[StringCommand, None, None]:
    """Remove undeclared files; units among them are stopped and disabled first."""
    if not stray:
        return
    paths = " ".join(map(shlex.quote, stray))
    # A file in a unit's own folder, such as a drop-in, is no unit.
    split = [path.rpartition("/") for path in stray]
    found = [name for folder, _, name in split if folder == SYSTEM]
    # A template never runs; its instances end with the units that requested them.
    units = [name for name in found if "@." not in name]
    if not units:
        yield StringCommand(f"rm -f {paths}")
        return
    names = " ".join(map(shlex.quote, units))
    # Reload first: an unread unit cannot be stopped or disabled.
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
    """Remove these files; units among them are stopped and disabled first.

    For example::

        units.absent(name="Stop the old unit", files=["/etc/systemd/system/old.service"])
    """
    states = host.get_fact(PathStates, paths=files)
    yield from without([path for path in files if path in states])


@operation()
def settle(
    units: list[Unit], together: bool = False, wait: bool = True
) -> Generator[StringCommand, None, None]:
    """Reload systemd if a unit file changed, then enable, start, restart or stop each unit.

    ``together`` stops all units that must restart before the first of them starts, so that ports
    and memory can move between them. Without ``wait`` the starts continue in the background during
    the deploy; a later `settle` of the same units waits for them, and fails if one of them fails.

    For example::

        units.settle(
            name="Run the service",
            units=[Unit("photos.service", restart_after=["/etc/holdfast/photos/photos.cfg"])],
        )
    """
    block = "" if wait else "--no-block "
    watched = {unit.name: unit.restart_after for unit in units}
    # An automount restarts for a change of its mount's file, which systemd must have read.
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

    # Stop units before others start, which may need their port or memory.
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
            # Waits for the running start, and fails with it.
            yield StringCommand(f"systemctl start {name}")
