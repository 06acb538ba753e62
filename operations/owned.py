"""Remove what Holdfast has on a host and the inventory no longer declares."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.owned import OwnedFiles
from operations import units


@operation()
def only(declared: list[str], patterns: list[str]) -> Generator[StringCommand, None, None]:
    """Remove the files that match ``patterns`` and are not in ``declared``; units among them are
    stopped and disabled first. Models, caches, queues and other data stay.

    For example::

        owned.only(name="Remove old routers", declared=paths, patterns=["/etc/holdfast/router/*"])
    """
    present: list[str] = host.get_fact(OwnedFiles, patterns=patterns)
    yield from units.without(sorted(set(present) - set(declared)))
