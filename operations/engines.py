"""Engines: replace models with a rollback."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.host_files import PathStates
from facts.units import UnitStates
from holdfast.engines.units import REPLACE_PROGRAM, EngineNames


@operation()
def configured(engines: list[tuple[EngineNames, str]]) -> Generator[StringCommand, None, None]:
    """Give each engine its configuration (the text in each pair). For a running engine
    `holdfast-replace` drains it, tests the new model and restores the old one if a step fails; then
    the operation fails with its sentence. An engine that does not run gets the declared
    configuration directly.

    For example::

        engines.configured(name="Tell each engine what to serve", engines=[(names, text)])
    """
    states = host.get_fact(PathStates, paths=[names.configuration for names, _ in engines])
    running = host.get_fact(UnitStates, watched={names.unit: [] for names, _ in engines})
    for names, text in engines:
        present, path = states.get(names.configuration), shlex.quote(names.configuration)
        packed = base64.b64encode(text.encode()).decode()
        if present and present.sha256 == hashlib.sha256(text.encode()).hexdigest():
            continue
        place = f"umask 022 && mkdir -p $(dirname {path}) && base64 -d > {path}.next"
        if present and running[names.unit].active == "active":
            # It runs in its own unit, which outlives the login that started it.
            yield StringCommand(
                f"{place} && {REPLACE_PROGRAM} {names.engine.name} < /dev/null", _stdin=packed
            )
        else:
            yield StringCommand(f"{place} && mv -fT {path}.next {path}", _stdin=packed)
