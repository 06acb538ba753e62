"""How a drill judges host tests: what is skipped needs a reason that stands."""

from __future__ import annotations

import ast
import io
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from holdfast.settings import HostSettings
from tests.drill import site as site_of_drill
from tests.drill.not_here import UNDECLARED, Verdict, judge, undeclared
from tests.drill.record import Phase, Record
from tests.drill.rows import ROWS, ROWS_OF_FILES
from tests.drill.site import DISTURBING, HOST_TESTS, Site
from tests.unit.site_data import good

REASONS = {("floor", "this host has no floor")}


def _judge(results: Mapping[str, str], *files: str) -> Verdict:
    (verdict,) = judge(files or ("floor",), results, REASONS)
    return verdict


def test_tests_that_hold_are_counted() -> None:
    assert _judge({"floor::a[rack]": "passed", "floor::b[rack]": "passed"}) == Verdict(
        "floor", True, "2 hold"
    )


@pytest.mark.parametrize("told", ["failed", "error"])
def test_one_that_fails_is_a_failure(told: str) -> None:
    verdict = _judge({"floor::a[rack]": "passed", "floor::b[rack]": told})
    assert verdict == Verdict("floor", False, "failed: floor::b[rack]")


def test_one_that_is_skipped_for_no_reason_is_a_failure() -> None:
    verdict = _judge({"floor::a[rack]": "passed", "floor::b[rack]": "skipped: not today"})
    assert verdict == Verdict(
        "floor", False, "skipped without a reason: floor::b[rack] (not today)"
    )


def test_what_another_file_may_say_is_no_reason() -> None:
    results = {"gpu::a[rack]": "passed", "gpu::b[rack]": "skipped: this host has no floor"}
    assert not _judge(results, "gpu").ok


def test_a_reason_that_stands_is_told_with_the_number() -> None:
    verdict = _judge(
        {"floor::a[rack]": "passed", "floor::b[rack]": "skipped: this host has no floor"}
    )
    assert verdict == Verdict("floor", True, "1 hold, 1 do not apply here: this host has no floor")


def test_a_file_that_ran_nothing_is_a_failure() -> None:
    assert _judge({}) == Verdict("floor", False, "nothing ran")


def test_a_file_of_which_all_is_skipped_is_absent_only_for_reasons_that_stand() -> None:
    results = {"floor::a[rack]": "skipped: this host has no floor"}
    assert _judge(results).absent
    results["floor::b[rack]"] = "skipped: not today"
    assert not _judge(results).ok


def test_what_belongs_to_no_file_is_a_failure() -> None:
    found = judge(["floor"], {"floor::a": "passed", "no report: it crashed": "error"}, REASONS)
    assert [verdict.ok for verdict in found] == [True, False]


def _sentences() -> set[tuple[str, str]]:
    """File and sentence of every `pytest.skip` of the host tests."""
    found = set()
    for path in HOST_TESTS.glob("test_*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.skip":
                (sentence,) = node.args
                assert isinstance(sentence, ast.Constant), ast.unparse(node)
                found.add((path.stem.removeprefix("test_"), str(sentence.value)))
    return found


def test_every_sentence_of_a_host_test_is_known_and_no_other() -> None:
    assert UNDECLARED.keys() == _sentences()


def test_every_file_of_host_tests_belongs_to_rows_that_exist() -> None:
    files = {path.stem.removeprefix("test_") for path in HOST_TESTS.glob("test_*.py")}
    assert ROWS_OF_FILES.keys() == files
    assert {row for rows in ROWS_OF_FILES.values() for row in rows} <= ROWS.keys()
    assert list(ROWS) == list(range(1, 35))


def test_what_an_inventory_declares_is_no_reason() -> None:
    data = good()["rack"]
    floor = ("floor", "this host has no floor")
    assert floor not in undeclared(HostSettings.model_validate(data))
    assert floor in undeclared(HostSettings.model_validate({**data, "floor": None}))


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """A site whose host tests are two files of our own, one of them about what is not there."""
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(
        "def pytest_addoption(parser):\n    parser.addoption('--inventory')\n"
    )
    skip = "import pytest\ndef test_b():\n    pytest.skip('this host has no modes')\n"
    (tests / "test_gpu_modes.py").write_text(skip)
    (tests / "test_base.py").write_text("def test_a():\n    pass\n")
    monkeypatch.setattr(site_of_drill, "HOST_TESTS", tests)
    inventory = tmp_path / "inventory.py"
    rack = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
        **{"lan_address": "rack-lan", "ssh_hostname": "rack", "tailnet": None},
        "ssh": {"lan_access": "keep", "lan_sources": ["10.0.2.0/24"]},
    }
    inventory.write_text(f"hosts = [('@rack/rack', {rack!r})]\n")
    record = Record("x", "now", kind="native", console=Console(file=io.StringIO(), width=200))
    return Site(record, inventory, tmp_path)


def _verify(site: Site) -> dict[str, tuple[bool, str]]:
    site.record.plan([Phase("verify")])
    with site.record.phase("verify"):
        site.verify("now")
    assert not site.record.phases[0].error
    return {check.name: (check.ok, check.seen) for check in site.record.checks}


def test_a_file_about_what_is_not_declared_is_no_check_and_is_told(site: Site) -> None:
    assert _verify(site) == {"host tests now: base": (True, "1 hold")}
    told = "gpu_modes (this host has no modes)"
    assert site.record.figures == {"host tests now, not here": told}
    assert site.record.checks[0].rows == (1,)


def test_a_test_that_skips_itself_for_another_reason(site: Site) -> None:
    added = "import pytest\ndef test_c():\n    pytest.skip('not today')\n"
    (site_of_drill.HOST_TESTS / "test_base.py").write_text(added)
    seen = {"host tests now: base": (False, "skipped without a reason: base::c (not today)")}
    assert _verify(site) == seen


def test_a_file_that_cannot_be_collected(site: Site) -> None:
    (site_of_drill.HOST_TESTS / "test_base.py").write_text("import nothing_of_this_name\n")
    found = _verify(site)
    assert found["host tests now: base"] == (False, "nothing ran")
    assert found["host tests now: pytest"][0] is False


def test_a_file_without_a_test(site: Site) -> None:
    (site_of_drill.HOST_TESTS / "test_base.py").write_text("")
    assert _verify(site)["host tests now: base"] == (False, "nothing ran")


def test_no_file_that_disturbs_units_runs_beside_one_that_judges_them() -> None:
    disturbs, judges = ("kill -9", "/bin/false", "egress.WATCH"), ("--failed", "ActiveState,User")
    files = {
        path.name
        for path in HOST_TESTS.glob("test_*.py")
        if any(word in path.read_text() for word in (*disturbs, *judges))
    }
    assert {"test_floor.py", "test_hardening.py", "test_services.py"} < files
    assert files <= DISTURBING
