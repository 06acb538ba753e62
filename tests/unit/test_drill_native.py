"""What the native drill leaves out, cuts and chooses is what it says."""

from __future__ import annotations

import ast
import re
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from holdfast.capabilities import CAPABILITIES
from tests.drill import every, native, sabotages
from tests.drill.converge import ROOT, SITE, steps
from tests.drill.every import EVERY, Result, summary
from tests.drill.native import CutsDrill, NativeDrill, ShortDrill
from tests.drill.not_here import ELSEWHERE
from tests.drill.sabotage import Sabotage
from tests.drill.scenario import Drill
from tests.drill.site import HOST_TESTS


def _host_tests() -> set[str]:
    return {
        f"{path.stem.removeprefix('test_')}::{node.name.removeprefix('test_')}"
        for path in HOST_TESTS.glob("test_*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_what_a_kind_of_machine_leaves_out_exists() -> None:
    # A test that was renamed would be run there again, and fail; one that is gone must go here too.
    for tests in ELSEWHERE.values():
        assert {test for test, _ in tests} <= _host_tests()


def _every_sabotage() -> set[Sabotage]:
    lists = (value for name, value in vars(sabotages).items() if name.isupper())
    found = (each for value in lists if isinstance(value, tuple) for each in value)
    return {each for each in found if isinstance(each, Sabotage)}


def test_every_sabotage_is_done_by_some_drill() -> None:
    done = {*sabotages.NATIVE, *sabotages.SITE, *sabotages.MODES, *sabotages.CARDS}
    assert {each.what for each in _every_sabotage() - done} == set()


NEVER_RED = {"storage::a_read_only_mount_takes_no_write": "no drill mounts anything read-only"}


def test_every_host_test_is_seen_red_by_some_sabotage() -> None:
    red = {test for each in _every_sabotage() for test in each.red}
    assert _host_tests() - red == set(NEVER_RED)


def test_the_virtual_machines_do_what_the_native_rack_cannot() -> None:
    left = {test for test, _ in ELSEWHERE["native"]}
    vm = (*sabotages.SITE, *sabotages.CARDS)
    done = {test for sabotage in vm for test in sabotage.red}
    assert left <= done


def test_the_tenths_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[str] = []
    for tenth in range(native.TENTHS):
        monkeypatch.setattr(native, "revision", lambda tenth=tenth: f"{tenth:040x}"[-8:] + 32 * "0")
        chosen += [each.what for each in NativeDrill(13, seed=0).chosen]
    assert sorted(chosen) == sorted(each.what for each in sabotages.NATIVE)


def test_the_report_names_the_tenth_the_seed_and_what_is_left_out() -> None:
    notes = "\n".join(NativeDrill(13, seed=7).record.notes)
    assert "seed 7: the power is cut in the step " in notes
    assert re.search(r"\d+ of \d+ sabotages, tenth \d, chosen by the commit's hash", notes)
    for test, _ in ELSEWHERE["native"]:
        assert test in notes


def test_a_seed_chooses_one_step_and_another_another() -> None:
    def step(seed: int) -> str:
        return next(note for note in NativeDrill(13, seed=seed).record.notes if "seed" in note)

    assert step(3) == step(3)
    taken = set(steps()) - set(NativeDrill.untaken)
    assert len({step(seed).partition(":")[2] for seed in range(200)}) == len(taken)


def test_the_power_of_a_virtual_machine_is_cut_in_steps_that_it_takes() -> None:
    plan = (ROOT / "tests/unit/recorded/plans/drill-rack.txt").read_text()
    taken = {line[3:].partition(" | ")[0] for line in plan.splitlines() if line.startswith("== ")}
    assert sorted(Drill.untaken) == sorted(set(steps()) - taken)


def test_the_steps_are_those_of_the_site() -> None:
    calls = re.findall(r"^\w+\.\w+\(", (ROOT / SITE).read_text(), re.MULTILINE)
    served = [each for each in CAPABILITIES if each.is_deployed]
    # The services are a step for each capability. What withdraws SSH from the LAN is an operation
    # of the firewall, and no step of its own.
    assert len(steps()) == len(calls) - 2 + len(served)
    assert len(set(steps())) == len(steps())


@pytest.mark.parametrize("drill", [NativeDrill, ShortDrill, CutsDrill])
def test_a_plan_needs_no_stage(drill: type[NativeDrill]) -> None:
    names = [act.name for act in drill(13, seed=0).acts()]
    assert len(names) == len(set(names))


def test_the_short_drill_names_phases_that_exist() -> None:
    whole = [act.name for act in NativeDrill(13, seed=0).acts()]
    assert set(ShortDrill.LEFT_OUT) <= set(whole)


def _result(told: str, status: int = 0) -> Result:
    return Result("x", status, 60, told, "2026-11-30 12:00")


@pytest.mark.parametrize(
    ("told", "status", "ok"),
    [
        ("drill: 3 passed, 0 failed", 0, True),
        ("9 passed in 1.0s", 0, True),
        ("drill: 3 passed, 0 failed", 1, False),
        ("drill: 0 passed, 0 failed", 0, False),
        ("", 0, False),
    ],
)
def test_a_drill_is_green_only_where_something_passed(told: str, status: int, ok: bool) -> None:
    assert _result(told, status).ok is ok


def test_the_summary_counts_what_is_red() -> None:
    told = summary([_result("drill: 3 passed, 0 failed"), _result("", 3)])
    assert "| x | RED | 1 min | exit status 3 |" in told
    assert told.splitlines()[-1] == "all drills: 1 passed, 1 failed"


def test_every_drill_runs_to_its_end_and_the_worst_is_the_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(every, "ROOT", tmp_path)
    monkeypatch.setattr(every, "commit", lambda: "")
    good = ("-c", "print('drill: 2 passed, 0 failed')")
    bad = ("-c", "print('drill: 1 passed, 1 failed'); raise SystemExit(1)")
    monkeypatch.setattr(every, "EVERY", {"bad": bad, "good": good})
    monkeypatch.setattr("sys.argv", ["every"])
    assert every.main() == 1
    assert capsys.readouterr().out.splitlines()[-1] == "all drills: 1 passed, 1 failed"
    monkeypatch.setattr("sys.argv", ["every", "good"])
    assert every.main() == 0
    assert len(EVERY) > 1


DIES = """
import os, pathlib, signal, time
while not pathlib.Path("report/all.json").exists():
    time.sleep(0.05)
os.kill(os.getppid(), signal.SIGINT)
time.sleep(1)
"""
"""A drill during which the operator interrupts, once the first result is kept."""


@pytest.mark.parametrize("option", [[], ["--beside"]])
def test_an_interrupted_night_goes_on_where_it_stopped(
    option: list[str],
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # What is started in the background by a shell ignores the interrupt.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    ran = tmp_path / "ran"
    counts = ("-c", f"open({str(ran)!r}, 'a').write('x'); print('drill: 2 passed, 0 failed')")
    dies = ("-c", DIES)
    monkeypatch.setattr(every, "ROOT", tmp_path)
    monkeypatch.setattr("sys.argv", ["every", *option])

    def night(commit: str, **drills: tuple[str, ...]) -> str:
        monkeypatch.setattr(every, "commit", lambda: commit)
        monkeypatch.setattr(every, "EVERY", drills)
        with suppress(KeyboardInterrupt):
            assert every.main() == 0
        return capsys.readouterr().out

    night("one", first=counts, second=(*dies, "--vm"))
    assert ran.read_text() == "x"
    # The same commit: only what has no result yet is run, and the summary has both.
    out = night("one", first=counts, second=(*counts, "--vm"))
    assert ran.read_text() == "xx"
    assert out.splitlines()[-1] == "all drills: 2 passed, 0 failed"
    assert "| first | green |" in out
    # Another commit, and one with changes: nothing of an earlier run counts.
    night("two", first=counts, second=counts)
    night("", first=counts, second=counts)
    assert ran.read_text() == 6 * "x"
