"""`make drill-all`: every drill and every live test, one after the other, and one summary.

What fails does not keep the rest from running. The summary is printed at the end and kept as
`report/all.md`; `docs/evidence.md` has the one of the last release.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.drill.converge import ROOT

DRILL = ("-m", "tests.drill")
LIVE = ("-m", "pytest", "-m", "lab")
EVERY: Mapping[str, tuple[str, ...]] = {
    "native, with every sabotage": (*DRILL, "--sabotage"),
    "native, the power cut in each step": (*DRILL, "--cuts"),
    "routers, Debian 12": (*DRILL, "--routing", "--debian", "12"),
    "live tests": (*LIVE, "tests/lab"),
    "hostile text, in every word": (
        "-m",
        "tests.unit.hostile_site",
        "--rounds",
        "200",
        "--fetch-sshd",
    ),
    "Molecule": ("-m", "tests.molecule"),
    "virtual machine, Debian 13, audited, with every sabotage": (
        *(*DRILL, "--vm", "--audit", "--sabotage"),
    ),
    "virtual machine, Debian 12, audited": (*DRILL, "--vm", "--debian", "12", "--audit"),
    "cards in a virtual machine": (*DRILL, "--gpu"),
}
"""Name -> what Python is given; what is quick comes first."""
_COUNTED = re.compile(r"(\d+) passed(?:.*?(\d+) failed)?")


@dataclass(frozen=True)
class Result:
    """How one of them ended; ``told`` is the last line that counts something."""

    name: str
    status: int
    seconds: float
    told: str

    @property
    def ok(self) -> bool:
        """Whether it is green: an exit status of 0, and something that passed."""
        counted = _COUNTED.search(self.told)
        return self.status == 0 and counted is not None and int(counted[1]) > 0


def run(name: str, arguments: tuple[str, ...], folder: Path) -> Result:
    """Run one of them to its end; what it prints is shown, and kept in ``folder``."""
    print(f"\n=== {name}: python {' '.join(arguments)}", flush=True)
    log = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.log"
    began, counted = time.monotonic(), ""
    with (
        log.open("w") as kept,
        subprocess.Popen(
            [sys.executable, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            kept.write(line)
            counted = line.strip() if _COUNTED.search(line) else counted
    return Result(name, process.returncode, time.monotonic() - began, counted)


def summary(results: Sequence[Result]) -> str:
    """A table of all of them in Markdown, and a last line that counts them."""
    rows = [
        f"| {result.name} | {'green' if result.ok else 'RED'} | {result.seconds / 60:.0f} min"
        f" | {result.told or f'exit status {result.status}'} |"
        for result in results
    ]
    passed = sum(result.ok for result in results)
    total = f"all drills: {passed} passed, {len(results) - passed} failed"
    return "\n".join(["| drill | | time | |", "|---|---|---|---|", *rows, "", total, ""])


def main() -> int:
    """Run all of them, or those that are named; 0 when each is green."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, by their names")
    names = parser.parse_args().names or list(EVERY)
    if unknown := sorted(set(names) - set(EVERY)):
        parser.error(f"there is no drill {unknown[0]!r}; there are: {'; '.join(EVERY)}")
    folder = ROOT / "report"
    folder.mkdir(exist_ok=True)
    results = [run(name, EVERY[name], folder) for name in names]
    told = summary(results)
    (folder / "all.md").write_text(told)
    print(f"\n{told}", end="")
    return 0 if all(result.ok for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
