"""The workflows of the repository's host, which no test here can run, as far as a file can tell."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(params=WORKFLOWS, ids=lambda path: path.name)
def workflow(request: pytest.FixtureRequest) -> dict[Any, Any]:
    """One workflow."""
    loaded: dict[Any, Any] = yaml.safe_load(request.param.read_text())
    return loaded


def jobs(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return list(workflow["jobs"].values())


def steps(workflow: dict[Any, Any]) -> list[dict[str, Any]]:
    return [step for job in jobs(workflow) for step in job["steps"]]


def targets(workflow: dict[Any, Any]) -> list[str]:
    """Every make target that a workflow runs."""
    runs = "\n".join(step.get("run", "") for step in steps(workflow))
    return re.findall(r"\bmake ([\w-]+)", runs)


def test_a_merge_waits_for_the_check_and_the_drill() -> None:
    loaded = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())
    assert targets(loaded) == ["check", "drill"]
    # YAML 1.1 reads the key `on` as true.
    assert "pull_request" in loaded[True]


def test_it_runs_targets_that_exist(workflow: dict[Any, Any]) -> None:
    assert targets(workflow)
    assert set(targets(workflow)) <= TARGETS


def test_actions_are_pinned_by_their_commit(workflow: dict[Any, Any]) -> None:
    used = [step["uses"] for step in steps(workflow) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []


def test_it_may_read_and_nothing_else(workflow: dict[Any, Any]) -> None:
    assert workflow["permissions"] == {"contents": "read"}
    assert not any("permissions" in job for job in jobs(workflow))


def test_no_job_runs_for_ever(workflow: dict[Any, Any]) -> None:
    assert all(job["timeout-minutes"] <= 60 for job in jobs(workflow))
    assert workflow["concurrency"]["cancel-in-progress"] is True
