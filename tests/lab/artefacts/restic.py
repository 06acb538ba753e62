"""restic as upstream publishes it: one bzip2-compressed program, named by version."""

from __future__ import annotations

import bz2
from pathlib import Path

from tests.lab.artefacts import store
from tests.lab.artefacts.go_tools import RESTIC


def _build(target: Path) -> str:
    program = RESTIC.build().file("restic")
    (target / "restic.bz2").write_bytes(bz2.compress(program.read_bytes()))
    return RESTIC.version


def build() -> store.Entry:
    """The program as `restic.bz2`."""
    return store.stored("restic-release", {"restic": RESTIC.build().directory.name}, _build)
