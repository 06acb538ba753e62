"""The state of systemd units, many in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime

from facts.framed import Framed


@dataclass(frozen=True)
class UnitState:
    """The state of one unit, and the newest change of its requested files.

    Times are seconds since the epoch; None if it never happened.
    """

    load: str
    active: str
    file_state: str
    needs_reload: bool
    started: float | None
    changed: float | None
    newest_watched: float | None


def seconds_of(timestamp: str) -> float | None:
    """Seconds since the epoch of a time that systemctl printed; None for "never"."""
    # "Sat 2026-11-21 03:42:50.123456 UTC", as --timestamp=us+utc prints it.
    if not timestamp:
        return None
    text = timestamp.split(" ", 1)[1].replace(" UTC", "+0000")
    return datetime.strptime(text, "%Y-%m-%d %H:%M:%S.%f%z").timestamp()


class UnitStates(Framed[dict[str, UnitState]]):
    """State of each named unit, by name. ``watched`` maps a unit to the files that it reads at
    start."""

    def command(self, watched: dict[str, list[str]]) -> str:
        """Build the probe for the units in ``watched``."""
        asked = [shlex.quote(" ".join(["unit", name, *paths])) for name, paths in watched.items()]
        names = " ".join(map(shlex.quote, watched))
        files = " ".join(shlex.quote(path) for paths in watched.values() for path in paths)
        parts = [
            # The requested names come first, because systemd may use other names in its answer.
            f"printf '%s\\n' {' '.join(asked)}",
            "systemctl show --timestamp=us+utc --property="
            "LoadState,ActiveState,UnitFileState,NeedDaemonReload,"
            f"InactiveExitTimestamp,StateChangeTimestamp -- {names}",
        ]
        if files:
            parts.append(f"echo; stat --printf='mtime %.6Y %n\\n' -- {files} 2>/dev/null")
        return "; ".join([*parts, "true"])

    @staticmethod
    def default() -> dict[str, UnitState]:
        """No unit."""
        return {}

    def process(self, output: list[str]) -> dict[str, UnitState]:
        """Parse the probe's output: names, one block of properties for each unit, times of
        files."""
        watched: dict[str, set[str]] = {}
        mtimes: dict[str, float] = {}
        blocks: list[dict[str, str]] = []
        fresh = True
        for line in output:
            word, _, rest = line.partition(" ")
            if word == "unit":
                name, *paths = rest.split(" ")
                watched[name] = set(paths)
            elif word == "mtime":
                seconds, _, path = rest.partition(" ")
                mtimes[path] = float(seconds)
            elif not line:
                fresh = True
            else:
                if fresh:
                    blocks.append({})
                    fresh = False
                key, _, value = line.partition("=")
                blocks[-1][key] = value
        return {
            name: UnitState(
                load=values.get("LoadState", ""),
                active=values.get("ActiveState", ""),
                file_state=values.get("UnitFileState", ""),
                needs_reload=values.get("NeedDaemonReload") == "yes",
                started=seconds_of(values.get("InactiveExitTimestamp", "")),
                changed=seconds_of(values.get("StateChangeTimestamp", "")),
                newest_watched=max(
                    (mtimes[path] for path in paths if path in mtimes), default=None
                ),
            )
            for (name, paths), values in zip(watched.items(), blocks, strict=True)
        }
