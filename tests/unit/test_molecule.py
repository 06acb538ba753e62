"""Molecule's scenarios, as far as they can be judged without a machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.molecule.__main__ import SCENARIOS, passed_tests
from tests.molecule.machine import STAGES

ROOT = Path(__file__).parents[2]
BARE = {
    "hostname": "rack",
    "distribution": "debian13",
    "interfaces": {"eth0": {"role": "management"}},
    "lan_address": "192.168.1.40",
    "docker": None,
    "tailnet": None,
    "ssh": {"lan_access": "keep"},
}
CONFTEST = """
def pytest_addoption(parser):
    parser.addoption("--inventory")
"""


def verify(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    """Run files of host tests as Molecule does, for a host that serves nothing."""
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "inventory.py").write_text(f"hosts = [('@rack/rack', {BARE!r})]\n")
    for name, body in files.items():
        (folder / f"test_{name}.py").write_text(f"import pytest\n{body}")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "tests.molecule.verifier", "-p", "no:cacheprovider"]
        + ["--inventory", str(folder / "inventory.py"), f"--junit-xml={folder / 'verify.xml'}"]
        + [str(folder / f"test_{name}.py") for name in files],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_each_scenario_has_a_machine() -> None:
    assert sorted(STAGES) == SCENARIOS == ["default", "serving"]


def test_what_holds_as_far_as_it_can_passes(tmp_path: Path) -> None:
    done = verify(
        tmp_path,
        engines="def test_a(): pass\ndef test_b(): pytest.skip('this host has no engine')\n",
        # No container can show it: it is left out.
        hardening="def test_a(): pass\ndef test_programs_are_confined(): assert False\n",
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "engines: 1 hold, 1 do not apply here: this host has no engine" in done.stdout
    assert "2 passed, 1 skipped, 1 deselected" in done.stdout
    assert passed_tests(tmp_path / "verify.xml") == 2


def test_a_skip_without_a_reason_and_a_file_without_tests_fail(tmp_path: Path) -> None:
    done = verify(
        tmp_path, base="def test_a(): pass\ndef test_b(): pytest.skip('not today')\n", ssh=""
    )
    assert done.returncode == 1, done.stdout + done.stderr
    assert "base: FAILED: skipped without a reason: base::b (not today)" in done.stdout
    assert "ssh: FAILED: nothing ran" in done.stdout


@pytest.mark.parametrize("tag", ["failure", "error", "skipped"])
def test_only_what_passed_is_counted(tmp_path: Path, tag: str) -> None:
    report = tmp_path / "verify.xml"
    assert passed_tests(report) == 0
    report.write_text(
        f"<testsuites><testsuite><testcase/><testcase><{tag}/></testcase></testsuite></testsuites>"
    )
    assert passed_tests(report) == 1
