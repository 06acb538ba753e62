"""Pinned downloads on a host: the unpacked versions of a program."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from facts.framed import Framed
from facts.places import PROGRAMS

MARKER = ".sha256"
"""Written last; contains the checksum of the unpacked download."""


@dataclass(frozen=True)
class InstalledVersion:
    """One complete version; ``installed`` is in seconds since the epoch."""

    version: str
    sha256: str
    installed: float


class InstalledVersions(Framed[list[InstalledVersion]]):
    """The complete versions of ``program`` on the host, oldest first. One command."""

    def command(self, program: str) -> str:
        """Build the probe for ``program``."""
        folder = shlex.quote(f"{PROGRAMS}/{program}")
        return (
            f"find {folder} -mindepth 2 -maxdepth 2 -name {MARKER} -type f"
            r" -printf '%T@ %h ' -exec cat '{}' \; 2>/dev/null; true"
        )

    @staticmethod
    def default() -> list[InstalledVersion]:
        """No version is installed."""
        return []

    def process(self, output: list[str]) -> list[InstalledVersion]:
        """Parse the probe's output; a marker without a checksum is ignored."""
        versions = []
        for line in output:
            fields = line.split()
            if len(fields) == 3:
                installed, path, sha256 = fields
                versions.append(InstalledVersion(path.rpartition("/")[2], sha256, float(installed)))
        return sorted(versions, key=lambda version: version.installed)
