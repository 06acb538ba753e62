"""The fast tier skips nothing: a test that cannot run where it must is one that failed."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

MAY_SKIP = {
    "test_a_machine_without_anything_of_nvidia_s": "the controller may have a driver of its own",
    "test_a_card_before_any_driver": "the controller may have a driver of its own",
    "test_another_user_reads_what_root_has_set_and_sets_nothing": "only root can become another",
}
"""Tests that may be skipped, each with the reason."""


def _judge(report: Any, name: str) -> Any:
    if report.skipped and not hasattr(report, "wasxfail") and name not in MAY_SKIP:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{reason}. Run tests/lab/setup, or give a reason in {__file__}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, Any]:
    """A test that is skipped has failed."""
    return _judge((yield), getattr(item, "originalname", item.name))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Generator[None, Any, Any]:
    """So has a file that is skipped as a whole."""
    return _judge((yield), collector.name)
