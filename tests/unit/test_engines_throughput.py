"""The bench of an engine: its row, its file, and the run that is slower than those before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from holdfast.engines.throughput import Row, append, regression, row_of, rows_in
from holdfast.servers.vllm import BENCH as VLLM
from tests.unit.recorded_facts import framed_lines

RESULT = (Path(__file__).parent / "recorded" / "bench_serve.json").read_text().strip()
"""What vLLM 0.32's client saved of four requests to `make drill-serving`'s engine."""
TOLD = dict.fromkeys(
    ("date", "host", "cards", "driver", "engine", "model", "version", "flags", "load"), "x"
)


def _row(tokens_per_second: float = 100.0) -> Row:
    return replace(row_of(VLLM, [RESULT], TOLD, 0), tokens_per_second=tokens_per_second)


def test_a_result_is_a_row() -> None:
    result = json.loads(RESULT)
    row = row_of(VLLM, [RESULT], TOLD, 0)
    assert row.tokens_per_second == pytest.approx(result["output_throughput"], abs=0.01)
    assert row.ttft_median_ms == pytest.approx(result["median_ttft_ms"], abs=0.1)
    assert (row.power_w, row.temperature_c) == (None, None)


def test_power_is_that_of_all_cards_and_heat_that_of_the_hottest() -> None:
    # Two samples of two cards.
    samples = ["250.0, 61", "150.0, 55", "270.0, 64", "170.0, 57"]
    row = row_of(VLLM, [RESULT, *samples], TOLD, 2)
    assert (row.power_w, row.temperature_c) == (420.0, 64.0)


def test_requests_that_failed_are_no_result() -> None:
    failed = json.dumps(json.loads(RESULT) | {"failed": 4})
    with pytest.raises(ValueError, match="4 of 4 requests failed"):
        row_of(VLLM, [failed], TOLD, 0)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = tmp_path / "new" / "serving.csv"
    rows = [_row(), replace(_row(), power_w=420.5, temperature_c=64.0, driver="")]
    for row in rows:
        append(file, row)
    assert rows_in(file) == rows
    assert rows_in(tmp_path / "none.csv") == []


@pytest.mark.parametrize(("now", "is_slower"), [(95.0, False), (91.0, False), (89.0, True)])
def test_a_run_is_compared_with_the_median_of_the_last(now: float, is_slower: bool) -> None:
    # One lucky and one unlucky run move nothing.
    before = [_row(value) for value in (300.0, 99.0, 101.0, 160.0, 20.0, 100.0)]
    told = regression(_row(now), before)
    assert (told is not None) is is_slower
    if told is not None:
        assert "89 tokens/s and made 100 before" in told


def test_runs_of_another_kind_are_not_compared() -> None:
    for field in ("host", "cards", "driver", "engine", "model", "version", "flags", "load"):
        other = row_of(VLLM, [RESULT], TOLD | {field: "other"}, 0)
        assert regression(_row(1.0), [other]) is None
    assert regression(_row(1.0), [_row()]) is not None


BENCH = """
import json, sys
from pyinfra.api import Inventory
from holdfast import inventory_file
from holdfast.engines import bench
fake = {"fake_responses": {"serve": sys.argv[1:]}, "fake_delay": 0.0, "fake_delay_jitter": 0.0}
inventory_file.read = lambda _: Inventory(([("@fake/rack", fake)], {}))
print(json.dumps(bench._run("inventory.py", "@fake/rack", "chat", "vllm bench serve")))
"""
"""A bench on a host that prints the arguments. In a process of its own: pyinfra's command line
patches sockets and threads when it is imported."""


def _bench(*output: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", BENCH, *output],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_what_a_login_prints_is_no_result() -> None:
    lines = [RESULT, "250.0, 61"]
    assert json.loads(_bench("hello, rack", *framed_lines(lines), "bye, rack").stdout) == lines
    assert "is incomplete" in _bench(RESULT).stderr
