"""The present limits of the cards, and the state of the unit that sets them."""

from __future__ import annotations

from dataclasses import dataclass, field

from facts import sections
from facts.framed import Framed
from facts.gpu_modes import modes_in
from holdfast.host_programs.gpu_limits import (
    FIELDS,
    FORMAT,
    PRESENT,
    RECORD,
    SMI_SECONDS,
    Seen,
    locked_in,
    seen_in,
)

SERVICE = "holdfast-gpu-limits.service"


@dataclass(frozen=True)
class LimitsState:
    """The limits in force.

    ``modes`` maps sets of cards to the modes they are in.
    ``locked`` maps the UUID of a card to the highest clock (MHz) the unit locked it to since boot;
    the driver itself does not report it. ``has_run``: since boot; ``succeeded``: the last run.
    ``unread``: the unit's file changed since systemd read it.
    """

    cards: tuple[Seen, ...] = ()
    modes: dict[str, str] = field(default_factory=dict)
    locked: dict[str, int] = field(default_factory=dict)
    has_run: bool = False
    succeeded: bool = False
    unread: bool = False


class GpuLimits(Framed[LimitsState]):
    """Power limits by card, locked clocks, and the last run of the unit. One command."""

    def command(self) -> str:
        """Build the probe."""
        return sections.probe(
            {
                "cards": f"timeout --kill-after=5 {SMI_SECONDS}"
                f" nvidia-smi --query-gpu={FIELDS} --format={FORMAT}",
                "modes": f"grep -H . {PRESENT}/*",
                "locked": f"cat {RECORD}",
                "unit": "systemctl show --property="
                "LoadState,NeedDaemonReload,ActiveState,Result,ExecMainExitTimestampMonotonic"
                f" {SERVICE}",
            }
        )

    @staticmethod
    def default() -> LimitsState:
        """No card and no unit."""
        return LimitsState()

    def process(self, output: list[str]) -> LimitsState:
        """Parse the probe's output."""
        found = sections.answers(output)
        cards, _ = seen_in("\n".join(found.get("cards", [])))
        unit = dict(line.split("=", 1) for line in found.get("unit", []) if "=" in line)
        # Its timer starts it each minute. A current run has no result yet, and the cards themselves
        # were read above.
        running = unit.get("ActiveState") == "activating"
        return LimitsState(
            cards=tuple(cards),
            modes=modes_in(found.get("modes", [])),
            locked=locked_in("\n".join(found.get("locked", []))),
            has_run=running or unit.get("ExecMainExitTimestampMonotonic", "0") != "0",
            succeeded=running or unit.get("Result") == "success",
            unread=unit.get("NeedDaemonReload") == "yes" or unit.get("LoadState") == "not-found",
        )
