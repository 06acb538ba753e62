"""How many checks each phase of each drill makes: `expected.json`, and the way to change it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tests.drill.record import Record

FILE = Path(__file__).with_name("expected.json")
"""Drill, as typed (`debian-13 --no-rebuild`) -> phase -> number of checks."""


def read(file: Path = FILE) -> dict[str, dict[str, int]]:
    """The counts of every drill.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is not JSON.
    """
    found: dict[str, dict[str, int]] = json.loads(file.read_text(encoding="utf-8"))
    return found


def accept(drill: str, record: Record, file: Path = FILE) -> Mapping[str, int]:
    """Make the counts of this run those that are expected of ``drill``; returns them."""
    counts = {phase.name: record.made(phase.name) for phase in record.phases}
    everything = {**read(file), drill: counts}
    text = json.dumps(everything, indent=2, sort_keys=False, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    return counts
