"""The command that runs the drills."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_no_drill_is_patched_by_gevent() -> None:
    """They ask in many threads at once; patched when half was imported, one heard no answer."""
    script = (
        "import tests.drill.__main__;"
        " from gevent.monkey import is_module_patched; print(is_module_patched('subprocess'))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
