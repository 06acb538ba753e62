"""Make sure that every repository has a snapshot that was restored and compared."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.backup import BackupStates
from holdfast.backup import PROGRAM, unproved


@operation()
def proved(paths: dict[str, list[str]]) -> Generator[StringCommand, None, None]:
    """Take and restore the first snapshot of each repository that has no such record. ``paths``
    maps a repository to the required paths of its snapshots. If one repository fails, the others
    are still tried, and then the operation fails.

    For example::

        backup.proved(name="Take a first snapshot", paths={"nas": ["/srv/photos"]})
    """
    state = host.get_fact(BackupStates)
    if state.unread:
        yield StringCommand("systemctl daemon-reload")
    owing = [name for name in paths if unproved(state.records.get(name, {}), paths[name])]
    if owing:
        each = "; ".join(f"{PROGRAM} first {shlex.quote(name)} || failed=1" for name in owing)
        yield StringCommand(f"failed=0; {each}; exit $failed")
