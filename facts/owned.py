"""Files on a host that carry names of ours, declared or not."""

from __future__ import annotations

from facts.framed import Framed


class OwnedFiles(Framed[list[str]]):
    """Paths of the files that match shell ``patterns`` of ours. One command."""

    def command(self, patterns: list[str]) -> str:
        """Build the probe; a folder, such as that of a unit's drop-ins, belongs to its owner."""
        return f"ls -dp {' '.join(patterns)} 2>/dev/null; true"

    @staticmethod
    def default() -> list[str]:
        """No files."""
        return []

    def process(self, output: list[str]) -> list[str]:
        """One path a line."""
        return [path for path in output if not path.endswith("/")]
