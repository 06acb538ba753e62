"""Routers: remove undeclared ones."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.router import RouterFiles
from operations import units


@operation()
def only(declared: list[str]) -> Generator[StringCommand, None, None]:
    """Stop and remove every router and queue with a file that is not in ``declared``. The content
    of a queue stays on disk.

    For example::

        router.only(name="Have no other router", declared=[file.path for file in files])
    """
    present: list[str] = host.get_fact(RouterFiles)
    yield from units.without(sorted(set(present) - set(declared)))
