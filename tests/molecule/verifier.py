"""`pytest -p tests.molecule.verifier tests/host`: host tests in a container, no skip of which lies.

What a container cannot show is left out, and a test that skips itself for no reason that stands is
a failure: both by the list that the drill keeps (`tests/drill/not_here.py`).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.drill.not_here import ELSEWHERE, SKIPPED, Verdict, judge, reasons_of

KIND = "native"


class Verifier:
    """Collects the result of each test, and judges them when all have run."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.results: dict[str, str] = {}
        self.verdicts: list[Verdict] = []

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out what no container can show."""
        elsewhere = {test for test, _ in ELSEWHERE[KIND]}
        left = [item for item in items if _name(item.nodeid).partition("[")[0] in elsewhere]
        self.config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in left]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep how a test ended; what fails at its end has failed."""
        if report.skipped and isinstance(report.longrepr, tuple):
            told = SKIPPED + report.longrepr[2].removeprefix("Skipped: ")
        elif report.when == "call" or report.failed:
            told = report.outcome
        else:
            return
        self.results[_name(report.nodeid)] = told

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Fail where a file's tests were skipped without a reason, or none of them ran."""
        reasons = reasons_of(Path(self.config.getoption("--inventory")))
        files = [Path(argument).stem.removeprefix("test_") for argument in self.config.args]
        self.verdicts = judge(files, self.results, reasons)
        if session.exitstatus == pytest.ExitCode.OK and not all(v.ok for v in self.verdicts):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Print what was seen of each file."""
        for verdict in self.verdicts:
            terminalreporter.line(
                f"{verdict.file}: {'' if verdict.ok else 'FAILED: '}{verdict.seen}"
            )


def _name(node: str) -> str:
    """A test as the drill calls it: ``file::function[parameters]``."""
    path, _, test = node.partition("::")
    return f"{Path(path).stem.removeprefix('test_')}::{test.removeprefix('test_')}"


def pytest_configure(config: pytest.Config) -> None:
    """Take part in this run."""
    config.pluginmanager.register(Verifier(config))
