"""Prints, as JSON, every file and folder that a deploy of Holdfast's own inventories would place.

Run as a program, as `plans` is: it puts others in the place of the generic verbs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

from tests.unit import plans


def main() -> None:
    """Print each file and each folder once."""
    found: dict[str, dict[str, Any]] = {}
    place = plans.Plan._place

    def noted(self: plans.Plan, **arguments: Any) -> Iterator[str]:
        for kind in ("files", "directories"):
            for each in arguments.get(kind) or []:
                told = {"kind": kind, **asdict(each)}
                found[json.dumps(told)] = told
        yield from place(self, **arguments)

    os.chdir(plans.ROOT)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(plans.Plan, "_place", noted):
        plans._prepare_secrets(Path(folder))
        plans.ask_verbs()
        for inventory, distributions in plans.INVENTORIES.items():
            for distribution in distributions:
                if inventory == "drill":
                    plans._prepare_lab(distribution)
                plans.plans(inventory, distribution, distribution)
    print(json.dumps(list(found.values())))


if __name__ == "__main__":
    main()
