"""The records of each backup repository, in one command."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from facts import places
from facts.framed import Framed

STATE = f"{places.STATE}/backup"


@dataclass(frozen=True)
class BackupState:
    """Records by repository, as `holdfast.host_programs.backup` writes them, and stale units.

    ``unread`` lists the backup units whose file changed since systemd read it: a timer would start
    the old version.
    """

    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)


class BackupStates(Framed[BackupState]):
    """The state of the host's backups. One command."""

    def command(self) -> str:
        """Build the probe."""
        return (
            f"grep -H '' {STATE}/*.json 2>/dev/null;"
            " systemctl show --property=Id,NeedDaemonReload"
            " 'holdfast-backup*.service' 'holdfast-restore*.service' 2>/dev/null; true"
        )

    @staticmethod
    def default() -> BackupState:
        """No backup was ever made."""
        return BackupState()

    def process(self, output: list[str]) -> BackupState:
        """Parse the probe's output; a record that is not JSON counts as none."""
        texts: dict[str, list[str]] = {}
        unread = []
        unit = ""
        for line in output:
            if line.startswith(f"{STATE}/"):
                path, _, text = line.partition(":")
                name = path.removeprefix(f"{STATE}/").removesuffix(".json")
                texts.setdefault(name, []).append(text)
            elif line.startswith("Id="):
                unit = line.removeprefix("Id=")
            elif line == "NeedDaemonReload=yes":
                unread.append(unit)
        records = {name: _record(lines) for name, lines in texts.items()}
        return BackupState(records, unread)


def _record(lines: list[str]) -> dict[str, Any]:
    try:
        record = json.loads("\n".join(lines))
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}
