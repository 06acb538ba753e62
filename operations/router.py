"""Routers: those that are not declared go."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.router import RouterFiles
from operations import units


@operation()
def only(declared: list[str]) -> Generator[StringCommand, None, None]:
    """Stop and remove every router and queue of which a file is not among the ``declared`` paths.

    What a queue still holds stays on disk.
    """
    present: list[str] = host.get_fact(RouterFiles)
    yield from units.without(sorted(set(present) - set(declared)))
