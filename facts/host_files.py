"""The state of files and directories, many in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Literal

from facts.framed import Framed

Kind = Literal["file", "directory", "link", "other"]
_KINDS: dict[str, Kind] = {
    "regular file": "file",
    "regular empty file": "file",
    "directory": "directory",
    "symbolic link": "link",
}


@dataclass(frozen=True)
class PathState:
    """One path that exists.

    ``mode`` is octal without a leading zero ("640"); ``sha256`` is set for regular files;
    ``target`` for links.
    """

    kind: Kind
    mode: str
    user: str
    group: str
    sha256: str | None = None
    target: str | None = None


class PathStates(Framed[dict[str, PathState]]):
    """The given absolute paths that exist, by path. One command however many there are."""

    def command(self, paths: list[str]) -> str:
        """Build the probe for ``paths``."""
        quoted = " ".join(shlex.quote(path) for path in paths) or "/nonexistent"
        # stat and sha256sum fail on an absent path, which is an answer here, not an error.
        return (
            f"stat --printf='S|%F|%a|%U|%G|%n|%N\\n' -- {quoted} 2>/dev/null; "
            # Ended by NUL: otherwise it escapes a backslash, which names of systemd units may
            # contain.
            f"sha256sum -z -- {quoted} 2>/dev/null | tr '\\0' '\\n'; true"
        )

    @staticmethod
    def default() -> dict[str, PathState]:
        """No path exists."""
        return {}

    def process(self, output: list[str]) -> dict[str, PathState]:
        """Parse the probe's output."""
        digests = {
            line[66:]: line[:64] for line in output if len(line) > 66 and line[64:66] == "  "
        }
        states: dict[str, PathState] = {}
        for line in output:
            if not line.startswith("S|"):
                continue
            _, kind, mode, user, group, path, shown = line.split("|", 6)
            _, arrow, target = shown.partition(" -> ")
            states[path] = PathState(
                kind=_KINDS.get(kind, "other"),
                mode=mode,
                user=user,
                group=group,
                sha256=digests.get(path) if _KINDS.get(kind) == "file" else None,
                target=target.strip("'") if arrow else None,
            )
        return states
