"""No test of the fast tier is skipped unseen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit import conftest

CONFTEST = Path(conftest.__file__)
ONE = "import pytest\n\n@pytest.mark.skipif(True, reason='no strace')\ndef test_{}():\n    pass\n"
INSIDE = "import pytest\n\ndef test_it():\n    pytest.skip('no strace')\n"
FILE = "import pytest\n\npytest.importorskip('no_such_module', reason='no strace')\n"


def _run(folder: Path, text: str) -> subprocess.CompletedProcess[str]:
    (folder / "conftest.py").write_text(CONFTEST.read_text())
    (folder / "test_x.py").write_text(text)
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "--rootdir", str(folder), str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("text", [ONE.format("it"), INSIDE, FILE], ids=["mark", "inside", "file"])
def test_what_is_skipped_has_failed(text: str, tmp_path: Path) -> None:
    done = _run(tmp_path, text)
    assert done.returncode != 0
    assert "no strace. Run tests/lab/setup" in done.stdout


@pytest.mark.parametrize("name", conftest.MAY_SKIP)
def test_what_has_a_reason_may_be_skipped(name: str, tmp_path: Path) -> None:
    done = _run(tmp_path, ONE.format(name.removeprefix("test_")))
    assert done.returncode == 0, done.stdout
    # A test that was renamed leaves no reason behind.
    tests = "".join(path.read_text() for path in CONFTEST.parent.glob("test_*.py"))
    assert f"def {name}(" in tests
