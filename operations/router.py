"""Routers: those that nobody declares go."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.router import RouterFiles
from holdfast.router import SYSTEM


@operation()
def only(declared: list[str]) -> Generator[StringCommand, None, None]:
    """Stop and remove every router and queue of which a file is not among the ``declared`` paths.

    What a queue still holds stays on disk.
    """
    present: list[str] = host.get_fact(RouterFiles)
    stray = sorted(set(present) - set(declared))
    paths = " ".join(map(shlex.quote, stray))
    units = [path for path in stray if path.startswith(f"{SYSTEM}/")]
    if units:
        names = " ".join(shlex.quote(path.rpartition("/")[2]) for path in units)
        # Read anew first: what was written and never read can be neither stopped nor disabled.
        yield StringCommand(
            f"systemctl daemon-reload && systemctl stop {names} && systemctl disable {names}"
            f" && rm -f {paths} && systemctl daemon-reload"
        )
    elif stray:
        yield StringCommand(f"rm -f {paths}")
