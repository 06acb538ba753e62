"""The site as a drill runs and judges it: every result goes into the drill's record."""

from __future__ import annotations

import platform
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.drill.converge import ROOT, SITE, Outcome, converge
from tests.drill.record import Record
from tests.lab.machine import Machine, acceleration_works

HOST_TESTS = ROOT / "tests" / "host"
SLOW = {"test_backup.py", "test_floor.py"}
"""Half of the time that all host tests take."""


@dataclass(frozen=True)
class Site:
    """One inventory, deployed and verified; logs are kept in ``logs``.

    ``deploy_file`` and ``judged`` (names of files of host tests, all where it is empty) are for a
    machine that cannot be the whole of the site.
    """

    record: Record
    inventory: Path
    logs: Path
    deploy_file: str = SITE
    judged: frozenset[str] = frozenset()

    def deploy(self, label: str) -> Outcome:
        """Run the site, however it ends."""
        outcome = converge(self.inventory, label, self.logs, self.deploy_file)
        self.record.converged(outcome)
        return outcome

    def converge(self, label: str, fatal: bool = False) -> Outcome:
        """Deploy; that it succeeds is a check, and with ``fatal`` ends the drill when it fails."""
        outcome = self.deploy(label)
        seen = "" if outcome.ok else f"{'; '.join(outcome.failed)}; see {outcome.log}"
        self.record.check(f"converge ({label}) succeeds", outcome.ok, seen, fatal)
        return outcome

    def expect_nothing(self, label: str) -> None:
        """Deploy where there is nothing left to do."""
        outcome = self.converge(label)
        seen = outcome.changed or "0 changes"
        self.record.check(f"converge ({label}) changes nothing", not outcome.changed, seen)

    def verify(self, when: str) -> None:
        """Run the host tests; that they hold, and that some did, is a check."""
        outcomes = self.host_tests(when)
        failed = [test for test, outcome in outcomes.items() if outcome in ("failed", "error")]
        counted = Counter(outcomes.values())
        skipped = f", {counted['skipped']} do not apply here" if counted["skipped"] else ""
        seen = failed or f"{counted['passed']} hold{skipped}"
        self.record.check(f"host tests {when}", not failed and counted["passed"] > 0, seen)

    def host_tests(self, when: str, only: Sequence[str] = ()) -> dict[str, str]:
        """Run the host tests, or those named ``file::function`` without ``test_``.

        Returns ``file::function[parameters]`` to "passed", "failed", "skipped" or, where the test
        itself was not reached, "error".
        """
        runs = [[f"test_{file}.py::test_{test}" for file, test in (t.split("::") for t in only)]]
        if not only:
            files = self.judged or {path.name for path in HOST_TESTS.glob("test_*.py")}
            runs = [sorted(run) for run in (files & SLOW, files - SLOW) if run]
        label = re.sub("[^a-z0-9]+", "-", when.lower())
        # At the same time: most of a host test is waiting for an emulated answer. As processes,
        # because pyinfra's inventories bring gevent, which xdist's workers do not survive.
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(self._run, (f"{label}-{n}" for n in range(len(runs))), runs)
            return {test: outcome for part in outcomes for test, outcome in part.items()}

    def _run(self, label: str, tests: list[str]) -> dict[str, str]:
        report = self.logs / f"verify-{label}.xml"
        log = report.with_suffix(".log")
        with log.open("wb") as sink:
            subprocess.run(
                [sys.executable, "-m", "pytest", *(str(HOST_TESTS / test) for test in tests)]
                + ["--inventory", str(self.inventory)]
                + [f"--junit-xml={report}", "-p", "no:cacheprovider"],
                cwd=ROOT,
                stdout=sink,
                stderr=subprocess.STDOUT,
                check=False,
            )
        cases = ElementTree.parse(report).iter("testcase") if report.exists() else ()
        outcomes = {_name(case): _outcome(case) for case in cases}
        return outcomes or {f"no report: {log.read_text()[-1500:]}": "error"}


def _name(case: ElementTree.Element) -> str:
    file = case.get("classname", "").rpartition(".")[2].removeprefix("test_")
    return f"{file}::{case.get('name', '').removeprefix('test_')}"


def _outcome(case: ElementTree.Element) -> str:
    verdicts = ("failure", "failed"), ("error", "error"), ("skipped", "skipped")
    return next((told for tag, told in verdicts if case.find(tag) is not None), "passed")


def keep_journals(machines: Iterable[Machine], logs: Path) -> None:
    """Write the journal of every machine that still runs into ``logs``."""
    for machine in machines:
        if machine.running():
            try:
                journal = machine.journal()
            except Exception as error:
                journal = f"no journal: {error}"
            (logs / f"journal-{machine.name}.log").write_text(journal)


def versions(rack: Machine, commands: dict[str, str]) -> dict[str, str]:
    """What ran: by ``commands`` on the rack, and on the controller."""
    told = {name: rack.execute(command)[1].strip() for name, command in commands.items()}
    return told | {
        "pyinfra": version("pyinfra"),
        "python": platform.python_version(),
        "accelerated": "yes" if acceleration_works(rack.image) else "no (software emulation)",
    }
