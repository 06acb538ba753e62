"""What a deploy does on each distribution is recorded, so that review sees every change of it."""

from __future__ import annotations

import difflib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from holdfast.render import TEMPLATES
from holdfast.settings import Distribution
from tests.unit.plans import RECORDED, ROOT, SECRET, merged

FILES = sorted(RECORDED.glob("*-*.txt"))
MEANT = "If that is meant: `make accept-plans`, and commit what it wrote."
UNPLANNED = {"engines/bench.sh.j2": "`make bench-serving` runs it; no deploy does"}
"""Templates that are in no plan, and why."""


def _plan(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.unit.plans", "--into", str(folder), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def _differences(name: str, planned: Path) -> dict[str, list[str]]:
    """The lines of one file that went and came, by the operation they belong to."""
    before, after = (
        (folder / name).read_text().splitlines() if (folder / name).exists() else []
        for folder in (RECORDED, planned)
    )
    groups: dict[str, list[str]] = {}
    heading = ""
    for line in list(difflib.unified_diff(before, after, n=0, lineterm=""))[2:]:
        if hunk := re.match(r"@@ -(\d+)", line):
            above = [text for text in before[: int(hunk[1])] if "== " in text[:60]]
            heading = above[-1] if above else "== its beginning"
        else:
            groups.setdefault(heading, []).append(line)
    return groups


def _all_differences(planned: Path) -> Iterator[str]:
    """Every difference; one that several files share is listed once."""
    names = {path.name for folder in (RECORDED, planned) for path in folder.glob("*.txt")}
    files: dict[tuple[str, ...], list[str]] = {}
    for name in sorted(names):
        for heading, lines in _differences(name, planned).items():
            files.setdefault((heading, *lines), []).append(name)
    for told, where in files.items():
        yield f"in {', '.join(where)}:"
        yield from told


def _on(path: Path, distribution: str) -> list[str]:
    """The plan of one distribution."""
    lines = path.read_text().splitlines()[1:]
    tagged = (re.match(r"\[((?:debian|ubuntu)[^]]*)\] (.*)", line) for line in lines)
    return [
        tag[2] if tag else line
        for line, tag in zip(lines, tagged, strict=True)
        if tag is None or distribution in tag[1].split()
    ]


def test_the_plans_are_the_recorded_ones(tmp_path: Path) -> None:
    done = _plan(tmp_path)
    assert done.returncode == 0, done.stderr
    if differences := list(_all_differences(tmp_path)):
        pytest.fail("\n".join(["The plans are not the recorded ones.", *differences, MEANT]), False)


def test_every_template_is_in_a_plan(tmp_path: Path) -> None:
    done = _plan(tmp_path, "--mark", "all")
    assert done.returncode == 0, done.stderr
    planned = set().union(*json.loads(done.stdout).values())
    templates = {str(path.relative_to(TEMPLATES)) for path in TEMPLATES.rglob("*.j2")}
    assert templates - planned == set(UNPLANNED)
    assert planned <= templates


def test_a_byte_of_a_template_changes_the_plans_that_use_it(tmp_path: Path) -> None:
    done = _plan(tmp_path, "--only", "example", "--mark", "service/program.slice.j2")
    assert done.returncode == 0, done.stderr
    file = "file /etc/systemd/system/floor.slice 644 root:root"
    changed = _differences("example-rack.txt", tmp_path)["== Floor | Write the files of the floor"]
    assert {f"-{file}", f"+{file}"} <= {line.rpartition(" ")[0] for line in changed}
    # The other machine has no floor.
    assert not any("Floor" in each for each in _differences("example-workstation.txt", tmp_path))


def test_a_host_of_another_distribution_stops_the_plan(tmp_path: Path) -> None:
    done = _plan(tmp_path, "--only", "example", "--found", "debian7")
    assert done.returncode != 0
    assert "distribution = 'debian12': the host runs debian7" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_two_distributions_have_the_same_plan(path: Path) -> None:
    told = path.read_text().partition(" on ")[2].partition(";")[0].split()
    distinct = {"\n".join(_on(path, distribution)) for distribution in told}
    assert len(distinct) == len(told) > 1


def test_one_rack_carries_everything_on_every_distribution() -> None:
    path = RECORDED / "complete-rack.txt"
    for distribution in get_args(Distribution):
        lines = _on(path, distribution)
        deploys = {line[3:].partition(" | ")[0] for line in lines if line.startswith("== ")}
        assert deploys >= {
            *("Base", "SSH", "Firewall", "Egress", "Cards on the bus", "GPU driver", "GPU modes"),
            *("GPU limits", "Docker", "GPU containers", "Tailnet", "Storage", "Floor", "Engines"),
            *("Ledger", "Routers", "Backup"),
        }
        text = "\n".join(lines)
        for found in (
            "postgresql",
            "holdfast-clouds-home",
            "holdfast-mode-",
            "docker network create",
        ):
            assert found in text


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_no_secret_and_no_path_of_this_machine_is_recorded(path: Path) -> None:
    text = path.read_text()
    assert SECRET not in text
    assert str(ROOT) not in text
    assert not re.search(r"\btmp[a-z0-9_]{8}\b", text), "a temporary name"


def test_a_line_that_is_not_on_all_says_on_which() -> None:
    plans = {"a": ["1", "2", "3"], "b": ["1", "3", "4"], "c": ["1", "2", "3"]}
    assert merged(plans) == ["1", "[a c] 2", "3", "[b] 4"]
