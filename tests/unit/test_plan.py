"""The whole plan, as recorded: an operation that appears, goes or moves is seen in review."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.unit.site_data import keep_secrets
from tests.unit.test_inventories import SECRETS

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
GOLDEN = HERE / "recorded" / "plan-drill.txt"


def _plan(tmp_path: Path, ground: str) -> subprocess.CompletedProcess[str]:
    keep_secrets(tmp_path, {key: f"{key.lower()[:9]}-9fKq27xLmZ" for key in SECRETS})
    recorded = tmp_path / "ground.txt"
    recorded.write_text(ground)
    return subprocess.run(
        [sys.executable, "-m", "tests.unit.plan_on_fakes", "inventories/drill.py", str(recorded)],
        cwd=ROOT,
        env={
            **os.environ,
            "HOLDFAST_SECRETS": str(tmp_path),
            "HOLDFAST_LAB": str(HERE / "data" / "lab.json"),
            "PYINFRA_PROGRESS": "off",
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _ground() -> str:
    return (HERE / "recorded" / "ground.txt").read_text()


def test_the_plan_of_a_bare_rack_is_the_recorded_one(tmp_path: Path) -> None:
    plan = _plan(tmp_path, _ground())
    assert plan.returncode == 0, plan.stderr
    assert plan.stdout == GOLDEN.read_text(), f"if that is meant: record it in {GOLDEN}"


def test_a_host_of_another_distribution_stops_the_plan(tmp_path: Path) -> None:
    other = _ground().replace("VERSION_ID=", 'VERSION_ID="7"#')
    plan = _plan(tmp_path, other)
    assert plan.returncode != 0
    assert "distribution" in plan.stderr
    assert plan.stdout == ""
