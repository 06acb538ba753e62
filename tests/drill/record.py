"""What a drill saw: phases, checks, converges, the attack matrix. Plain data, saved as JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from tests.drill.converge import Outcome

WHOLE = "the drill"
"""Where a failure stands that belongs to no phase."""


class CheckFailed(Exception):
    """A check of the drill did not hold and what follows stands on it."""


class Ended(Exception):
    """The drill cannot go on; the reason stands in the record."""


@dataclass
class Check:
    """One thing that must hold, what was seen, and the rows of the promises it belongs to."""

    phase: str
    name: str
    ok: bool
    seen: str
    rows: tuple[int, ...] = ()
    fault: str = ""
    """What was done to the machine, where the check is that it survived this."""
    state: str = ""
    """The good state in which it must then be."""


@dataclass
class Phase:
    """A planned stretch of the drill; ``seconds`` is wall time, ``error`` what broke it off."""

    name: str
    rows: tuple[int, ...] = ()
    seconds: float = 0.0
    ran: bool = False
    ok: bool = False
    error: str = ""


@dataclass
class Record:
    """Everything one drill has to say.

    ``kind`` is the kind of machine. ``counts`` is the number of checks that each phase must make
    (`expected.json`), None where this drill was never counted. ``command`` is what was typed.
    """

    title: str
    began: str
    kind: str = ""
    command: str = "python -m tests.drill"
    notes: list[str] = field(default_factory=list)
    """What a reader must know before the figures; the report prints them on top."""
    versions: dict[str, str] = field(default_factory=dict)
    phases: list[Phase] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    mishaps: list[Check] = field(default_factory=list)
    """What went wrong beside the checks."""
    counts: Mapping[str, int] | None = None
    least_survived: int = 0
    """So many faults the machine must survive in this drill."""
    interrupted: str = ""
    """The signal that ended the drill early."""
    converges: list[dict[str, object]] = field(default_factory=list)
    matrix: dict[str, dict[str, str]] = field(default_factory=dict)
    """When -> path of attack -> what answered ("nothing" or the open ports)."""
    figures: dict[str, str] = field(default_factory=dict)
    console: Console = field(default_factory=Console, repr=False)
    _present: Phase | None = field(default=None, repr=False)

    def plan(self, phases: Sequence[Phase]) -> None:
        """Note every phase before the first one runs.

        Raises:
            ValueError: two phases have one name.
        """
        names = [phase.name for phase in phases]
        twice = sorted({name for name in names if names.count(name) > 1})
        self.phases = list(phases)
        if twice:
            raise ValueError(f"two phases have one name: {', '.join(twice)}")

    @contextmanager
    def phase(self, name: str, vital: bool = False) -> Iterator[None]:
        """Run what is inside as the planned phase ``name``, and time it; a failure is recorded.

        Raises:
            KeyError: no such phase is planned.
            Ended: it failed and is vital, or it was interrupted.
        """
        phase = next((each for each in self.phases if each.name == name), None)
        if phase is None:
            raise KeyError(f"no phase is planned as {name!r}")
        phase.ran = phase.ok = True
        self._present, began = phase, time.monotonic()
        self.console.rule(f"[bold]{name}[/] {datetime.now(UTC):%H:%M:%S}")
        try:
            with self.console.status(name):
                yield
        except BaseException as error:
            phase.ok, phase.error = False, said(error)
            self._note_interruption(error)
            self.console.print_exception(max_frames=6)
            if vital or not isinstance(error, Exception):
                raise Ended(f"{name}: {phase.error}") from error
        finally:
            self._present = None
            phase.seconds = time.monotonic() - began
            self.console.print(f"[dim]{phase.seconds:.0f} s")

    @contextmanager
    def must(self, name: str) -> Iterator[None]:
        """Record each exception that the block raises; the drill goes on behind it."""
        try:
            yield
        except Ended as end:
            self.console.print(f"[red]the drill ends here:[/] {escape(str(end))}")
        except BaseException as error:
            self._note_interruption(error)
            self.mishap(name, error)
            self.console.print_exception(max_frames=6)

    def mishap(self, name: str, error: object) -> None:
        """Record that ``name`` does not hold, outside the checks that a phase makes."""
        phase = self._present
        if phase:
            phase.ok = False
        self.mishaps.append(Check(phase.name if phase else WHOLE, name, False, said(error)))

    def check(
        self,
        name: str,
        ok: bool,
        seen: object = "",
        fatal: bool = False,
        rows: tuple[int, ...] = (),
    ) -> bool:
        """Record a check; with ``fatal`` a failure ends the phase. ``rows``: else the phase's.

        Raises:
            CheckFailed: it does not hold and is fatal.
            RuntimeError: no phase is running.
        """
        phase = self._present
        if phase is None:
            raise RuntimeError(f"a check was made outside every phase: {name}")
        self.checks.append(Check(phase.name, name, ok, str(seen), rows or phase.rows))
        mark = "[green]✓" if ok else "[red]✗"
        shown = f" [dim]({escape(str(seen))})" if str(seen) else ""
        self.console.print(f"{mark}[/] {escape(name)}{shown}")
        if not ok:
            phase.ok = False
            if fatal:
                raise CheckFailed(f"{name}: {seen}")
        return ok

    def survived(self, fault: str, state: str, ok: bool, seen: object = "") -> bool:
        """Record, as a check, that the machine is in the good ``state`` after a ``fault``."""
        self.check(f"{fault}: {state}", ok, seen)
        self.checks[-1].fault, self.checks[-1].state = fault, state
        return ok

    @property
    def survivals(self) -> dict[str, str]:
        """Each fault that was survived, to every state that it ended in."""
        lost = {check.fault for check in self.checks if not check.ok}
        states: dict[str, list[str]] = {}
        for check in self.checks:
            if check.fault and check.fault not in lost:
                states.setdefault(check.fault, []).append(check.state)
        return {fault: "; ".join(found) for fault, found in states.items()}

    def converged(self, outcome: Outcome) -> None:
        """Keep what a converge did."""
        self.converges.append({**asdict(outcome), "log": outcome.log.name})
        changed = f"{len(outcome.changed)} of {outcome.operations} operations changed something"
        self.console.print(f"  {outcome.label}: {outcome.seconds:.0f} s, {changed}")

    def attacked(self, when: str, path: str, answered: str) -> None:
        """Fill one cell of the attack matrix."""
        self.matrix.setdefault(when, {})[path] = answered

    def made(self, phase: str) -> int:
        """How many checks a phase has made."""
        return sum(check.phase == phase for check in self.checks)

    @property
    def broken(self) -> list[Check]:
        """What did not hold, the counts of checks aside."""
        survived = len(self.survivals)
        ended = f"interrupted by {self.interrupted}" if self.interrupted else ""
        claims = [
            (WHOLE, "it ran to its end", not ended, ended),
            (WHOLE, "at least one check was made", bool(self.checks), "no check"),
            (
                WHOLE,
                f"at least {self.least_survived} faults are survived",
                survived >= self.least_survived,
                f"{survived} were",
            ),
            *((phase.name, "the phase ran", phase.ran, "did not run") for phase in self.phases),
            *(
                (phase.name, "the phase ran to its end", not phase.error, phase.error)
                for phase in self.phases
            ),
        ]
        failed = [Check(*claim) for claim in claims if not claim[2]]
        return [check for check in [*self.checks, *self.mishaps, *failed] if not check.ok]

    @property
    def uncounted(self) -> list[Check]:
        """Phases that made fewer checks than they must, or whose number is not known."""
        accept = f"`{self.command} --accept-counts` accepts the counts of a run"
        if self.counts is None:
            seen = f"this drill was never counted; {accept}"
            return [Check(WHOLE, "the number of its checks is known", False, seen)]
        found = []
        planned = {phase.name: phase for phase in self.phases}
        for name in [*planned, *(self.counts.keys() - planned.keys())]:
            made, expected = self.made(name), self.counts.get(name)
            if name not in planned:
                seen = f"{expected} checks are expected of it; {accept}"
                found.append(Check(name, "the phase is planned", False, seen))
            elif expected is None:
                seen = f"it made {made} and was never counted; {accept}"
                found.append(Check(name, "the number of its checks is known", False, seen))
            elif planned[name].ran and made < expected:
                seen = f"{made} of {expected} checks were made; {accept}"
                found.append(Check(name, "every check was made", False, seen))
        return found

    @property
    def failures(self) -> list[Check]:
        """Everything that keeps the drill from being green."""
        return [*self.broken, *self.uncounted]

    @property
    def passed(self) -> int:
        """How many checks held."""
        return sum(check.ok for check in self.checks)

    @property
    def ok(self) -> bool:
        """Every planned phase ran, each check held, no count fell, and a check was made."""
        return not self.failures

    def as_dict(self) -> dict[str, object]:
        """Everything but the console."""
        return {
            "title": self.title,
            "began": self.began,
            "kind": self.kind,
            "command": self.command,
            "ok": self.ok,
            "interrupted": self.interrupted,
            "notes": self.notes,
            "versions": self.versions,
            "phases": [
                {
                    **asdict(phase),
                    "made": self.made(phase.name),
                    "expected": (self.counts or {}).get(phase.name),
                }
                for phase in self.phases
            ],
            "checks": [asdict(check) for check in self.checks],
            "survived": self.survivals,
            "failures": [asdict(check) for check in self.failures],
            "converges": self.converges,
            "matrix": self.matrix,
            "figures": self.figures,
        }

    def save(self, path: Path) -> None:
        """Write the record as JSON."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", encoding="utf-8")

    def _note_interruption(self, error: BaseException) -> None:
        if isinstance(error, KeyboardInterrupt):
            self.interrupted = self.interrupted or "the keyboard"


def said(error: object) -> str:
    """What an exception says, or else its name."""
    return (str(error) or type(error).__name__)[-2000:]
