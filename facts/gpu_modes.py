"""What the cards are for now, and what of modes lies on a host, declared or not."""

from __future__ import annotations

from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from holdfast.gpu.modes import DROP_IN, GREETING, PROGRAM, RECORDS, SYSTEM, UNDO
from holdfast.host_programs.mode import CONFIG, PRESENT


@dataclass(frozen=True)
class GpuModesState:
    """``modes`` maps sets of cards to the modes in force; ``files`` are paths of ours."""

    modes: dict[str, str] = field(default_factory=dict)
    files: tuple[str, ...] = ()


def modes_in(lines: list[str]) -> dict[str, str]:
    """Set to mode, in what grep says of the files that record it."""
    told = (line.partition(":") for line in lines)
    return {path.rpartition("/")[2]: mode.strip() for path, _, mode in told}


class GpuModes(Framed[GpuModesState]):
    """The modes in force, and every file that belongs to modes. One command."""

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
