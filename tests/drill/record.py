"""What a drill saw: phases, checks, converges, the attack matrix. Plain data, saved as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from tests.drill.converge import Outcome


class CheckFailed(Exception):
    """A check of the drill did not hold and what follows stands on it."""


@dataclass
class Check:
    """One thing that must hold, and what was seen."""

    phase: str
    name: str
    ok: bool
    seen: str


@dataclass
class Phase:
    """A stretch of the drill; ``seconds`` is wall time."""

    name: str
    seconds: float = 0.0
    ok: bool = True


@dataclass
class Record:
    """Everything one drill has to say."""

    title: str
    began: str
    versions: dict[str, str] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    converges: list[dict[str, object]] = field(default_factory=list)
    matrix: dict[str, dict[str, str]] = field(default_factory=dict)
    """When -> path of attack -> what answered ("nothing" or the open ports)."""
    figures: dict[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console, repr=False)

    @contextmanager
    def phase(self, name: str, vital: bool = False) -> Iterator[None]:
        """Time what happens inside; a failure is recorded, and ends the drill where it is vital.

        Raises:
            Exception: whatever ended a vital phase.
        """
        phase = Phase(name)
        self.phases.append(phase)
        began = time.monotonic()
        self.console.rule(f"[bold]{name}[/] {datetime.now(UTC):%H:%M:%S}")
        try:
            with self.console.status(name):
                yield
        except Exception as error:
            phase.ok = False
            self.checks.append(Check(name, "the phase ran to its end", False, str(error)[-2000:]))
            self.console.print_exception(max_frames=6)
            if vital:
                raise
        finally:
            phase.seconds = time.monotonic() - began
            self.console.print(f"[dim]{phase.seconds:.0f} s")

    def check(self, name: str, ok: bool, seen: object = "", fatal: bool = False) -> bool:
        """Record a check; with ``fatal`` a failure ends the drill.

        Raises:
            CheckFailed: it does not hold and is fatal.
        """
        phase = self.phases[-1].name if self.phases else ""
        self.checks.append(Check(phase, name, ok, str(seen)))
        mark = "[green]✓" if ok else "[red]✗"
        self.console.print(f"{mark}[/] {name}" + (f" [dim]({seen})" if str(seen) else ""))
        if not ok:
            self.phases[-1].ok = False
            if fatal:
                raise CheckFailed(f"{name}: {seen}")
        return ok

    def converged(self, outcome: Outcome) -> None:
        """Keep what a converge did."""
        self.converges.append({**asdict(outcome), "log": outcome.log.name})
        changed = f"{len(outcome.changed)} of {outcome.operations} operations changed something"
        self.console.print(f"  {outcome.label}: {outcome.seconds:.0f} s, {changed}")

    def attacked(self, when: str, path: str, answered: str) -> None:
        """Fill one cell of the attack matrix."""
        self.matrix.setdefault(when, {})[path] = answered

    @property
    def failures(self) -> list[Check]:
        """The checks that did not hold."""
        return [check for check in self.checks if not check.ok]

    def as_dict(self) -> dict[str, object]:
        """Everything but the console."""
        return {
            "title": self.title,
            "began": self.began,
            "ok": not self.failures,
            "versions": self.versions,
            "phases": [asdict(phase) for phase in self.phases],
            "checks": [asdict(check) for check in self.checks],
            "converges": self.converges,
            "matrix": self.matrix,
            "figures": self.figures,
        }

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")
