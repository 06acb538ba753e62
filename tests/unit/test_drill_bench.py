"""The bench's figures add up, and a run that was no no-op is no figure."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.drill.bench import Column, Run, aim, complaints, table
from tests.drill.transcript import Answer, Transcript


def _run(wall: float, *, changes: int = 0, commands: int = 3) -> Run:
    answers = [Answer(f"sh -c {number}", "", "", 0, seconds=0.1) for number in range(commands)]
    return Run(
        wall=wall,
        starting=0.5,
        processor=0.9,
        operations=31,
        changes=changes,
        transcript=Transcript(connecting=10.0, connected=10.2, answers=answers),
    )


def _column(*runs: Run) -> Column:
    return Column("fast target", list(runs), unit=0.01)


def test_the_parts_of_a_run_add_up_to_its_wall_time() -> None:
    run = _run(2.0)
    parts = (run.starting, run.connecting, run.transcript.asking, run.rest)
    assert parts == pytest.approx((0.5, 0.2, 0.3, 1.0))
    assert sum(parts) == pytest.approx(run.wall)


def test_all_figures_are_those_of_the_median_run() -> None:
    column = _column(_run(9.0), _run(1.0), _run(2.0))
    assert column.typical.wall == 2.0
    sink = io.StringIO()
    Console(file=sink, width=120).print(table([column]))
    lines = sink.getvalue().splitlines()
    assert [line for line in lines if "wall time, median" in line and "2.00 s" in line]
    assert [line for line in lines if "in such commands" in line and "200" in line]


@pytest.mark.parametrize(("wall", "verdict"), [(3.0, "met"), (3.01, "missed")])
def test_the_aim_is_judged_on_the_median(wall: float, verdict: str) -> None:
    assert verdict in aim(_column(_run(wall), _run(0.1), _run(30.0)))


def test_no_change_and_one_count_of_commands_is_no_complaint() -> None:
    assert complaints([_column(_run(1.0), _run(2.0)), _column(_run(30.0))]) == []


def test_a_single_change_in_any_run_is_a_complaint() -> None:
    (sentence,) = complaints([_column(_run(1.0)), _column(_run(1.0), _run(2.0, changes=1))])
    assert "1 changes in 2 runs" in sentence


def test_targets_that_were_asked_different_things_are_a_complaint() -> None:
    (sentence,) = complaints([_column(_run(1.0)), _column(_run(1.0, commands=4))])
    assert "[3, 4]" in sentence
