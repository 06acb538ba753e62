"""The site as a drill runs and judges it: every result goes into the drill's record."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from tests.drill.converge import ROOT, SITE, Outcome, converge
from tests.drill.not_here import ELSEWHERE, SKIPPED, judge, reasons_of
from tests.drill.record import Record
from tests.drill.rows import ROWS_OF_FILES
from tests.lab.machine import Machine, acceleration_works

HOST_TESTS = ROOT / "tests" / "host"
DISTURBING = {
    *("test_egress.py", "test_floor.py", "test_hardening.py"),
    *("test_router.py", "test_sandbox.py", "test_services.py"),
}
"""Files that kill a service or have a unit fail, and those that expect every service to run and no
unit to have failed: never at the same time. Half of the time that all host tests take."""


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
        nothing = outcome.ok and not outcome.changed
        self.record.check(f"converge ({label}) changes nothing", nothing, seen)

    def verify(self, when: str) -> None:
        """Run the host tests; that those of each file hold, and that some did, is a check.

        A test that was skipped for no reason that stands (`not_here.py`) is a failure, and so is a
        file of which nothing held, unless all of it is skipped for reasons that stand.
        """
        files = sorted(name.removeprefix("test_").removesuffix(".py") for name in self._files())
        results = self.host_tests(when)
        verdicts = judge(files, results, reasons_of(self.inventory))
        for verdict in verdicts:
            if not verdict.absent:
                name = f"host tests {when}: {verdict.file}"
                rows = ROWS_OF_FILES.get(verdict.file, ())
                self.record.check(name, verdict.ok, verdict.seen, rows=rows)
        absent = [f"{verdict.file} ({verdict.seen})" for verdict in verdicts if verdict.absent]
        if absent:
            self.record.figures[f"host tests {when}, not here"] = "; ".join(absent)

    def host_tests(self, when: str, only: Sequence[str] = ()) -> dict[str, str]:
        """Run the host tests, or those named ``file::function`` without ``test_``.

        Returns ``file::function[parameters]`` to "passed", "failed", "skipped: " and what the test
        said or, where the test itself was not reached, "error".
        """
        runs = [[f"test_{file}.py::test_{test}" for file, test in (t.split("::") for t in only)]]
        if not only:
            files = self._files()
            runs = [sorted(run) for run in (files & DISTURBING, files - DISTURBING) if run]
        label = re.sub("[^a-z0-9]+", "-", when.lower())
        # At the same time: most of a host test is waiting for an emulated answer. As processes,
        # because pyinfra's inventories bring gevent, which xdist's workers do not survive.
        with ThreadPoolExecutor() as pool:
            outcomes = pool.map(self._run, (f"{label}-{n}" for n in range(len(runs))), runs)
            return {test: outcome for part in outcomes for test, outcome in part.items()}

    def _files(self) -> frozenset[str]:
        return self.judged or frozenset(path.name for path in HOST_TESTS.glob("test_*.py"))

    def _deselected(self) -> list[str]:
        tests = (test.split("::") for test, _ in ELSEWHERE.get(self.record.kind, ()))
        # By the name that pytest gives a test, which begins at the repository's root.
        folder = os.path.relpath(HOST_TESTS, ROOT)
        return [f"--deselect={folder}/test_{file}.py::test_{test}" for file, test in tests]

    def _run(self, label: str, tests: list[str]) -> dict[str, str]:
        report = self.logs / f"verify-{label}.xml"
        log = report.with_suffix(".log")
        with log.open("wb") as sink:
            subprocess.run(
                [sys.executable, "-m", "pytest", *(str(HOST_TESTS / test) for test in tests)]
                + ["--inventory", str(self.inventory)]
                + [f"--junit-xml={report}", "-p", "no:cacheprovider", *self._deselected()],
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
    skipped = case.find("skipped")
    if case.find("failure") is not None:
        return "failed"
    if case.find("error") is not None:
        return "error"
    return "passed" if skipped is None else f"{SKIPPED}{skipped.get('message', '')}"


def keep_journals(machines: Iterable[Machine], logs: Path) -> None:
    """Write the journal of every machine that still runs into ``logs``.

    Raises:
        RuntimeError: there is no journal of one of them; those of the others are kept.
    """
    missing = []
    for machine in machines:
        try:
            if machine.running():
                (logs / f"journal-{machine.name}.log").write_text(machine.journal())
        except Exception as error:
            missing.append(f"no journal of {machine.name}: {error}")
    if missing:
        raise RuntimeError("; ".join(missing))


def versions(rack: Machine, commands: dict[str, str]) -> dict[str, str]:
    """What ran: by ``commands`` on the rack, and on the controller."""
    told = {name: rack.execute(command)[1].strip() for name, command in commands.items()}
    return told | {
        "pyinfra": version("pyinfra"),
        "python": platform.python_version(),
        "accelerated": "yes" if acceleration_works(rack.image) else "no (software emulation)",
    }
