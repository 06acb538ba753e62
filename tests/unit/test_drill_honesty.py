"""A drill cannot lie: its record, its report and its status say what goes wrong."""

from __future__ import annotations

import io
import json
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.drill import expected, routing, sabotages
from tests.drill.__main__ import perform
from tests.drill.gpu import GpuDrill
from tests.drill.native import CutsDrill, NativeDrill, ShortDrill
from tests.drill.record import WHOLE
from tests.drill.rehearsal import Act, Rehearsal, Scenery
from tests.drill.routing import RoutingDrill
from tests.drill.rows import ROWS
from tests.drill.scenario import Drill
from tests.drill.serving import ServingDrill
from tests.lab.machine import Machine

KEY = "small"
COUNTS = {"first": 1, "second": 2, "third": 0}


def _raise(error: BaseException) -> None:
    raise error


class Bench(Scenery):
    def __init__(self, folder: Path, curtain: Callable[[], object] = lambda: None) -> None:
        super().__init__(folder)
        self.curtain, self.is_up = curtain, True

    @property
    def machines(self) -> Iterable[Machine]:
        return ()

    def lower_curtain(self) -> None:
        self.is_up = False
        self.curtain()


class Small(Rehearsal):
    """Three phases that make as many checks as ``COUNTS`` says, where nothing is changed."""

    kind = "native"
    stage: Bench

    def __init__(self, folder: Path, **changes: Callable[[], object]) -> None:
        super().__init__("A small drill")
        self.record.console = Console(file=io.StringIO(), width=200)
        self.folder, self.changes = folder, changes
        self.vital: set[str] = set()

    def acts(self) -> Sequence[Act]:
        first, second = self.changes.get("first", self.first), self.changes.get("second")
        return (
            Act("first", first, vital="first" in self.vital, rows=(1,)),
            Act("second", second or self.second, vital="second" in self.vital, rows=(6, 7)),
            Act("third", self.changes.get("third", lambda: None)),
        )

    def first(self) -> None:
        self.stage = Bench(self.folder, self.changes.get("curtain", lambda: None))
        self.record.check("it stands", True)

    def second(self) -> None:
        self.record.check("one", True, rows=(8,))
        self.record.check("two", True)


class Stand:
    """A place for a drill's report, and the counts that are expected of it."""

    def __init__(self, folder: Path) -> None:
        self.report, self.counts = folder / "report", folder / "expected.json"
        self.counts.write_text(json.dumps({KEY: COUNTS}))

    def perform(self, drill: Rehearsal, **more: Any) -> int:
        return perform(drill, KEY, self.report, counts=self.counts, **more)

    @property
    def told(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.report / "report.json").read_text())
        return found

    @property
    def page(self) -> str:
        return (self.report / "report.html").read_text()

    def failures(self) -> dict[str, str]:
        """Phase -> what was seen of its failures."""
        assert self.told["ok"] is False
        return {failure["phase"]: failure["seen"] for failure in self.told["failures"]}


@pytest.fixture
def stand(tmp_path: Path) -> Stand:
    return Stand(tmp_path)


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Small]:
    return lambda **changes: Small(tmp_path / "stage", **changes)


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """What starts the tests may have them ignore an interruption."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, signal.default_int_handler) for number in numbers}
    yield
    for number, handler in before.items():
        assert signal.signal(number, handler) is signal.default_int_handler


def _last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out.splitlines()[-1]


def test_a_drill_that_goes_well_is_green(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    drill = small()
    drill.record.notes.append("the seed of the power cut is 7")
    assert stand.perform(drill) == 0
    assert (stand.told["ok"], stand.told["failures"]) == (True, [])
    assert _last_line(capsys) == "drill: 3 passed, 0 failed"
    assert "the seed of the power cut is 7" in stand.page
    assert (stand.report / "logs").is_dir()
    assert not drill.stage.is_up


def test_the_report_orders_the_checks_by_the_rows_of_the_promises(
    stand: Stand, small: Callable[..., Small]
) -> None:
    stand.perform(small())
    rows = {check["name"]: check["rows"] for check in stand.told["checks"]}
    assert rows == {"it stands": [1], "one": [8], "two": [6, 7]}
    page = " ".join(stand.page.split())
    for row in ("7 DOCKER-USER, IPv4 and IPv6", "8 Tailscale the only way in"):
        assert f'<td>{row}</td><td><span class="good">second: 1 of 1</span>' in page
    assert '<td>2 NVIDIA driver, flavour by GPU</td><td><span class="dim">no check' in page


@pytest.mark.parametrize("phase", ["first", "second", "third"])
@pytest.mark.parametrize("error", [RuntimeError("it broke"), SystemExit(0), KeyboardInterrupt()])
def test_an_exception_in_any_phase(
    stand: Stand, small: Callable[..., Small], phase: str, error: BaseException
) -> None:
    assert stand.perform(small(**{phase: lambda: _raise(error)})) == 1
    assert phase in stand.failures()


def test_an_exception_between_two_phases(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = small()
    acts = drill.acts()

    def lazily() -> Iterator[Act]:
        yield acts[0]
        raise RuntimeError("between")

    monkeypatch.setattr(drill, "acts", lazily)
    assert stand.perform(drill) == 1
    assert "between" in [failure["seen"] for failure in stand.told["failures"]]


def test_an_exception_in_the_plan_itself(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = small()
    monkeypatch.setattr(drill, "acts", lambda: _raise(RuntimeError("no plan")))
    assert stand.perform(drill) == 1
    assert "no plan" in [failure["seen"] for failure in stand.told["failures"]]


def test_two_phases_of_one_name(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = small()
    acts = drill.acts()
    monkeypatch.setattr(drill, "acts", lambda: (*acts, acts[0]))
    assert stand.perform(drill) == 1
    assert "two phases have one name: first" in [each["seen"] for each in stand.told["failures"]]


def test_a_vital_phase_that_fails_leaves_phases_that_did_not_run(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    drill = small()
    drill.changes = {"second": lambda: _raise(RuntimeError("it broke"))}
    drill.vital = {"second"}
    assert stand.perform(drill) == 1
    assert stand.failures()["third"] == "did not run"
    assert '<td class="bad" colspan="2">did not run</td>' in stand.page
    # The phase broke off, made fewer checks than it must, and another did not run.
    assert _last_line(capsys) == "drill: 1 passed, 3 failed"
    assert not drill.stage.is_up


def test_a_phase_that_makes_fewer_checks(stand: Stand, small: Callable[..., Small]) -> None:
    drill = small()
    drill.changes = {"second": lambda: drill.record.check("one", True)}
    assert stand.perform(drill) == 1
    assert stand.failures()["second"].startswith("1 of 2 checks were made; `python -m tests.drill")


@pytest.mark.parametrize(
    ("known", "where"),
    [({}, WHOLE), ({KEY: {"first": 1, "second": 2}}, "third"), ({KEY: COUNTS | {"x": 3}}, "x")],
)
def test_a_drill_or_a_phase_that_was_never_counted_or_is_gone(
    stand: Stand, small: Callable[..., Small], known: object, where: str
) -> None:
    stand.counts.write_text(json.dumps(known))
    assert stand.perform(small()) == 1
    assert "--accept-counts" in stand.failures()[where]
    assert json.loads(stand.counts.read_text()) == known


def test_counts_are_accepted_when_all_else_holds(stand: Stand, small: Callable[..., Small]) -> None:
    stand.counts.write_text(json.dumps({"other": {"a": 1}, KEY: {"first": 9, "gone": 1}}))
    assert stand.perform(small(), accept_counts=True) == 0
    assert json.loads(stand.counts.read_text()) == {"other": {"a": 1}, KEY: COUNTS}


def test_counts_of_a_drill_that_fails_are_not_accepted(
    stand: Stand, small: Callable[..., Small]
) -> None:
    drill = small(second=lambda: _raise(RuntimeError("it broke")))
    assert stand.perform(drill, accept_counts=True) == 1
    assert json.loads(stand.counts.read_text()) == {KEY: COUNTS}


def _surviving(drill: Small, *lost: str) -> None:
    for fault in ("the engine is killed", "a card is lost"):
        drill.record.survived(fault, "the floor answers", fault not in lost, "8 of 8")
    drill.record.survived("the engine is killed", "it is back by itself", True)


def test_faults_that_were_survived_are_listed_with_the_states_they_ended_in(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    drill = small()
    drill.record.least_survived = 2
    drill.changes = {"second": lambda: _surviving(drill)}
    assert stand.perform(drill) == 0
    states = "the floor answers; it is back by itself"
    survived = {"the engine is killed": states, "a card is lost": "the floor answers"}
    assert stand.told["survived"] == survived
    assert "<h2>Faults survived: 2</h2>" in stand.page
    assert f'<td>the engine is killed</td><td class="good">{states}</td>' in stand.page
    output = drill.record.console.file
    assert isinstance(output, io.StringIO)
    assert "faults survived: 2; each with the state it ended in:" in output.getvalue()
    assert f"the engine is killed: {states}" in output.getvalue()
    # Each is a check as well.
    assert _last_line(capsys) == "drill: 4 passed, 0 failed"


def test_a_drill_that_survives_fewer_faults_than_it_must(
    stand: Stand, small: Callable[..., Small]
) -> None:
    drill = small()
    drill.record.least_survived = 3
    drill.changes = {"second": lambda: _surviving(drill)}
    # Nor are the counts of such a run accepted.
    assert stand.perform(drill, accept_counts=True) == 1
    assert stand.failures()[WHOLE] == "2 were"
    assert json.loads(stand.counts.read_text()) == {KEY: COUNTS}


def test_a_fault_that_ended_in_one_bad_state_was_not_survived(
    stand: Stand, small: Callable[..., Small]
) -> None:
    drill = small()
    drill.changes = {"second": lambda: _surviving(drill, "the engine is killed")}
    assert stand.perform(drill) == 1
    assert stand.failures() == {"second": "8 of 8"}
    assert stand.told["survived"] == {"a card is lost": "the floor answers"}


def test_the_whole_native_drill_must_survive_25_faults() -> None:
    must = {key: drill().record.least_survived for key, drill in DRILLS.items()}
    assert {key for key, least in must.items() if least >= 25} == {
        "native-13",
        "native-13 --sabotage",
    }


def test_a_drill_without_a_check(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = small()
    monkeypatch.setattr(drill, "acts", lambda: (Act("nothing", lambda: None),))
    stand.counts.write_text(json.dumps({KEY: {"nothing": 0}}))
    assert stand.perform(drill) == 1
    assert stand.failures() == {WHOLE: "no check"}


def test_a_drill_without_a_phase(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    drill = small()
    monkeypatch.setattr(drill, "acts", lambda: ())
    assert stand.perform(drill) == 1
    assert stand.failures().keys() == {WHOLE, *COUNTS}


def test_a_check_outside_every_phase(small: Callable[..., Small]) -> None:
    with pytest.raises(RuntimeError, match="outside every phase"):
        small().record.check("it stands", True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_drill_that_is_interrupted(
    stand: Stand, small: Callable[..., Small], number: signal.Signals
) -> None:
    drill = small(second=lambda: signal.raise_signal(number))
    assert stand.perform(drill) == 1
    assert stand.failures()[WHOLE] == f"interrupted by {number.name}"
    assert stand.failures()["third"] == "did not run"
    assert f"interrupted by {number.name}" in stand.page
    assert not drill.stage.is_up


def test_an_interruption_that_something_swallows(stand: Stand, small: Callable[..., Small]) -> None:
    drill = small()

    def swallow() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except BaseException:
            drill.second()

    drill.changes = {"second": swallow}
    assert stand.perform(drill) == 1
    assert stand.failures()["third"] == "did not run"


def test_a_second_interruption_lets_the_machines_be_stopped(
    stand: Stand, small: Callable[..., Small]
) -> None:
    stopped = []

    def stop() -> None:
        signal.raise_signal(signal.SIGINT)
        stopped.append(True)

    drill = small(second=lambda: signal.raise_signal(signal.SIGINT), curtain=stop)
    assert stand.perform(drill) == 1
    assert stopped == [True]


def test_an_exception_while_machines_are_stopped(stand: Stand, small: Callable[..., Small]) -> None:
    assert stand.perform(small(curtain=lambda: _raise(RuntimeError("stuck")))) == 1
    assert stand.failures() == {WHOLE: "stuck"}


def test_a_journal_that_cannot_be_kept(
    stand: Stand, small: Callable[..., Small], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Silent:
        name = "rack"

        def running(self) -> bool:
            return True

        def journal(self) -> str:
            raise RuntimeError("it does not answer")

    monkeypatch.setattr(Bench, "machines", [Silent()])
    assert stand.perform(small()) == 1
    assert stand.failures() == {WHOLE: "no journal of rack: it does not answer"}


def test_an_exception_in_a_thread(stand: Stand, small: Callable[..., Small]) -> None:
    drill = small()

    def act() -> None:
        drill.second()
        thread = threading.Thread(target=_raise, args=[RuntimeError("aside")])
        thread.start()
        thread.join()

    drill.changes = {"second": act}
    assert stand.perform(drill) == 1
    assert stand.failures() == {"second": "aside"}


def test_a_place_where_no_report_can_be_written(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    stand.report.write_text("a file, and no folder")
    drill = small()
    assert stand.perform(drill) == 1
    told = capsys.readouterr().out.splitlines()
    assert told[0].startswith("the drill does not begin: ")
    assert told[1:] == ["drill: 0 passed, 1 failed"]
    assert not hasattr(drill, "stage")


def test_a_report_that_cannot_be_written_in_the_end(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    drill = small(third=(stand.report / "report.html").mkdir)
    assert stand.perform(drill) == 1
    output = drill.record.console.file
    assert isinstance(output, io.StringIO)
    assert "the report cannot be written: " in output.getvalue()
    assert _last_line(capsys) == "drill: 3 passed, 1 failed"
    assert not (stand.report / "report.json").exists()


def test_no_report_of_an_earlier_run_is_left(stand: Stand, small: Callable[..., Small]) -> None:
    stand.perform(small())
    seen: list[bool] = []
    report = stand.report / "report.json"
    stand.perform(small(third=lambda: seen.append(report.exists())))
    assert seen == [False]


def test_counts_that_cannot_be_read(
    stand: Stand, small: Callable[..., Small], capsys: pytest.CaptureFixture[str]
) -> None:
    stand.counts.write_text("<<<<<<< HEAD")
    assert stand.perform(small()) == 1
    assert "the drill does not begin" in capsys.readouterr().out


DRILLS: dict[str, Callable[[], Rehearsal]] = {
    **{
        f"debian-{debian}{options}": partial(Drill, debian, seed=0, **chosen)
        for debian in (12, 13)
        for options, chosen in {
            "": {},
            " --no-rebuild": {"rebuild": False},
            " --audit": {"audit": True},
            " --audit --sabotage": {"audit": True, "sabotage": True},
        }.items()
    },
    **{f"routing-{debian}": partial(RoutingDrill, debian) for debian in (12, 13)},
    "native-13": partial(NativeDrill, 13, seed=0),
    "native-13 --short": partial(ShortDrill, 13, seed=0),
    "native-13 --sabotage": partial(NativeDrill, 13, seed=0, sabotage=True),
    "cuts-13": partial(CutsDrill, 13, seed=0),
    "gpu": GpuDrill,
    "serving": ServingDrill,
}
SABOTAGES = {
    ("debian-13 --audit --sabotage", "sabotage"): (sabotages.SITE, 12),
    ("native-13 --sabotage", "sabotage"): (sabotages.NATIVE, 17),
    ("gpu", "sabotage"): (sabotages.CARDS, 1),
    ("serving", "sabotage"): (
        (*sabotages.MODELS, *sabotages.CHECKPOINTS, *sabotages.ENGINES, *sabotages.SERVICES),
        3,
    ),
    ("serving", "stay in another mode, then reboot"): (sabotages.MODES, 8),
    ("routing-13", "sabotage"): (routing.SABOTAGES, 3),
}
"""Drill and phase -> what is done, and how many other checks there are."""


@pytest.mark.parametrize("key", DRILLS)
def test_every_phase_of_a_drill_is_counted(key: str) -> None:
    acts = DRILLS[key]().acts()
    assert expected.read()[key].keys() == {act.name for act in acts}
    assert {row for act in acts for row in act.rows} <= ROWS.keys()


@pytest.mark.parametrize("place", SABOTAGES)
def test_every_sabotage_is_counted(place: tuple[str, str]) -> None:
    (key, phase), (done, others) = place, SABOTAGES[place]
    # Each of them, and that every host test they are about was red.
    assert expected.read()[key][phase] == len(done) + 1 + others
