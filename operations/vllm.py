"""Engines: those that are not declared go, and a new model comes with a way back."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.host_files import PathStates
from facts.units import UnitStates
from facts.vllm import EngineFiles
from holdfast.engines.units import REPLACE_PROGRAM, EngineNames
from operations import units


@operation()
def only(declared: list[str]) -> Generator[StringCommand, None, None]:
    """Stop and remove every engine of which a file is not among the ``declared`` paths.

    Models and caches stay.
    """
    present: list[str] = host.get_fact(EngineFiles)
    yield from units.without(sorted(set(present) - set(declared)))


@operation()
def configured(engines: list[tuple[EngineNames, str]]) -> Generator[StringCommand, None, None]:
    """Have each engine told its configuration (the text beside it).

    One that serves is given another by `holdfast-replace`, which drains it, proves the new model
    and otherwise brings the old one back; the operation then fails with its sentence. One that does
    not serve has nothing to go back to, and is started with what is declared.
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
            # It works in a unit of its own, which does not end with the login that asked for it.
            yield StringCommand(
                f"{place} && {REPLACE_PROGRAM} {names.engine.name} < /dev/null", _stdin=packed
            )
        else:
            yield StringCommand(f"{place} && mv -fT {path}.next {path}", _stdin=packed)
