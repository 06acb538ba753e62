"""`make drill-all`: every drill and every live test, and one summary.

What fails does not keep the rest from running. The summary is printed at the end and kept as
`report/all.md`; `docs/evidence.md` has the one of the last release.

It takes hours, and a night can be interrupted: each result is kept as it comes, and the next
`make drill-all` of the same commit, with nothing changed, runs only what has no result yet.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from tests.drill.converge import ROOT
from tests.drill.native import revision
from tests.lab.process import output_of

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
VIRTUAL = frozenset({"--vm", "--gpu"})
"""What marks a drill of virtual machines."""
_COUNTED = re.compile(r"(\d+) passed(?:.*?(\d+) failed)?")


@dataclass(frozen=True)
class Result:
    """How one of them ended; ``told`` is the last line that counts something."""

    name: str
    status: int
    seconds: float
    told: str
    ended: str
    """UTC, to the minute."""

    @property
    def ok(self) -> bool:
        """Whether it is green: an exit status of 0, and something that passed."""
        counted = _COUNTED.search(self.told)
        return self.status == 0 and counted is not None and int(counted[1]) > 0


class Kept:
    """The results of one commit, in a file that an interrupted run leaves behind.

    ``commit`` is empty where the working tree has changes: nothing is read or kept then.
    """

    def __init__(self, file: Path, commit: str) -> None:
        self.file, self.commit = file, commit
        self.results: dict[str, Result] = {}
        if commit and file.exists():
            there = json.loads(file.read_text())
            if there["commit"] == commit:
                self.results = {each["name"]: Result(**each) for each in there["results"]}

    def add(self, result: Result) -> None:
        """Keep one more; a file that was half written would end the next run."""
        self.results[result.name] = result
        if not self.commit:
            return
        half = self.file.with_suffix(".half")
        results = [asdict(each) for each in self.results.values()]
        half.write_text(json.dumps({"commit": self.commit, "results": results}, indent=2))
        half.replace(self.file)


def commit() -> str:
    """The commit that is checked out; empty where the working tree has changes."""
    changed = output_of(["git", "-C", str(ROOT), "status", "--porcelain"]).strip()
    return "" if changed else revision()


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
            kept.flush()
            counted = line.strip() if _COUNTED.search(line) else counted
    ended = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
    return Result(name, process.returncode, time.monotonic() - began, counted, ended)


def summary(results: Sequence[Result]) -> str:
    """A table of all of them in Markdown, and a last line that counts them."""
    rows = [
        f"| {result.name} | {'green' if result.ok else 'RED'} | {result.seconds / 60:.0f} min"
        f" | {result.told or f'exit status {result.status}'} | {result.ended} |"
        for result in results
    ]
    passed = sum(result.ok for result in results)
    total = f"all drills: {passed} passed, {len(results) - passed} failed"
    head = ["| drill | | time | | ended (UTC) |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows, "", total, ""])


def main() -> int:
    """Run all of them, or those that are named; 0 when each is green."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these, by their names")
    parser.add_argument(
        "--again", action="store_true", help="also what has a result of this commit already"
    )
    parser.add_argument(
        "--beside",
        action="store_true",
        help="virtual machines beside the rest: sooner done, but no timing of it counts",
    )
    arguments = parser.parse_args()
    names = arguments.names or list(EVERY)
    if unknown := sorted(set(names) - set(EVERY)):
        parser.error(f"there is no drill {unknown[0]!r}; there are: {'; '.join(EVERY)}")
    folder = ROOT / "report"
    folder.mkdir(exist_ok=True)
    kept = Kept(folder / "all.json", commit())
    left = [name for name in names if arguments.again or name not in kept.results]
    for name in sorted(set(names) - set(left)):
        print(f"{name}: has a result of {kept.commit[:12]} already; --again runs it once more")

    interrupted = threading.Event()

    def lane(names: Sequence[str]) -> None:
        for name in names:
            result = run(name, EVERY[name], folder)
            if interrupted.is_set():
                return
            kept.add(result)

    virtual = [name for name in left if arguments.beside and VIRTUAL & set(EVERY[name])]
    with ThreadPoolExecutor() as lanes:
        try:
            list(lanes.map(lane, [[name for name in left if name not in virtual], virtual]))
        except KeyboardInterrupt:
            interrupted.set()
            raise
    told = summary([kept.results[name] for name in names])
    (folder / "all.md").write_text(told)
    print(f"\n{told}", end="")
    return 0 if all(kept.results[name].ok for name in names) else 1


if __name__ == "__main__":
    sys.exit(main())
