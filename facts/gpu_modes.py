"""The active modes, and all files of modes on a host, declared or not."""

from __future__ import annotations

from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from facts.places import SYSTEM
from holdfast.host_programs import mode
from holdfast.host_programs.mode import CONFIG, PRESENT, UNDO_UNIT
from holdfast.shipping import path_of

PROGRAM = path_of(mode)
RECORDS = "/etc/tmpfiles.d/holdfast-gpu-modes.conf"
GREETING = "/etc/update-motd.d/60-holdfast-mode"
UNDO = f"{SYSTEM}/{UNDO_UNIT.format('')}"
"""The unit that takes over from a switch that was killed; its instance is the set of cards."""
DROP_IN = "60-holdfast-mode.conf"


@dataclass(frozen=True)
class GpuModesState:
    """``modes`` maps sets of cards to their active modes; ``files`` are paths of ours."""

    modes: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def modes_in(lines: list[str]) -> dict[str, str]:
    """Set to mode, from grep's output for the files that record it."""
    told = (line.partition(":") for line in lines)
    return {path.rpartition("/")[2]: mode.strip() for path, _, mode in told}


class GpuModes(Framed[GpuModesState]):
    """The active modes, and every file that belongs to modes. One command."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "modes": f"grep -H . {PRESENT}/*",
                "files": f"ls {SYSTEM}/holdfast-mode-*.target {SYSTEM}/*.d/{DROP_IN}"
                f" {PROGRAM} {CONFIG} {RECORDS} {GREETING} {UNDO} {PRESENT}/*",
            }
        )

    @staticmethod
    def default() -> GpuModesState:
        """No modes."""
        return GpuModesState()

    def process(self, output: list[str]) -> GpuModesState:
        """Parse the probe's output."""
        found = sections.answers(output)
        return GpuModesState(modes_in(found.get("modes", [])), tuple(found.get("files", [])))
