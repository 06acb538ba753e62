"""systemd units as they are, many in one command."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from datetime import datetime

from pyinfra.api import FactBase


@dataclass(frozen=True)
class UnitState:
    """One unit as systemd sees it, and the newest change among the files it was asked about.

    Times are seconds since the epoch; None where it never happened.
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


class UnitStates(FactBase[dict[str, UnitState]]):
    """State of each named unit, by name. ``watched`` maps a unit to the files it reads at start."""

    def command(self, watched: dict[str, list[str]]) -> str:
        """Build the probe for the units in ``watched``."""
        parts = []
        for name, paths in watched.items():
            unit = shlex.quote(name)
            files = " ".join(shlex.quote(path) for path in paths)
            parts.append(f"echo unit={unit}")
            parts.append(
                "systemctl show --timestamp=us+utc --property="
                "LoadState,ActiveState,UnitFileState,NeedDaemonReload,"
                f"InactiveExitTimestamp,StateChangeTimestamp {unit}"
            )
            if files:
                parts.append(f"stat --printf='mtime=%.6Y\\n' -- {files} 2>/dev/null")
        return "; ".join([*parts, "true"])

    @staticmethod
    def default() -> dict[str, UnitState]:
        """No unit."""
        return {}

    def process(self, output: list[str]) -> dict[str, UnitState]:
        """Parse the probe's output."""
        blocks: dict[str, list[tuple[str, str]]] = {}
        current: list[tuple[str, str]] = []
        for line in output:
            key, _, value = line.partition("=")
            if key == "unit":
                current = blocks.setdefault(value, [])
            else:
                current.append((key, value))
        states = {}
        for name, pairs in blocks.items():
            values = dict(pairs)
            mtimes = [float(value) for key, value in pairs if key == "mtime"]
            states[name] = UnitState(
                load=values.get("LoadState", ""),
                active=values.get("ActiveState", ""),
                file_state=values.get("UnitFileState", ""),
                needs_reload=values.get("NeedDaemonReload") == "yes",
                started=seconds_of(values.get("InactiveExitTimestamp", "")),
                changed=seconds_of(values.get("StateChangeTimestamp", "")),
                newest_watched=max(mtimes, default=None),
            )
        return states
