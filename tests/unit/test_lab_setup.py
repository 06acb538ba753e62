"""`tests/lab/setup`, with stand-ins for everything that would change this machine."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAND_INS = {
    "id": "echo 1000",
    "dpkg-query": "exit 1",
    "qemu-system-x86_64": "echo QEMU emulator version 8.2.2",
    # As the real one does, it hands on nothing that was exported.
    "sudo": 'exec env -i PATH="$PATH" "$@"',
    "apt-cache": "echo bookworm-backports",
    "apt-get": 'echo "${DEBIAN_FRONTEND-none} $*" >> "$(dirname "$0")/called"',
}


def test_no_package_asks_a_question_of_any_user(tmp_path: Path) -> None:
    for name, body in STAND_INS.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run([ROOT / "tests/lab/setup"], env=environment, check=True)
    update, install = (tmp_path / "called").read_text().splitlines()
    assert update.endswith("update -qq")
    assert install.startswith("noninteractive install")
    assert " mmdebstrap " in install
