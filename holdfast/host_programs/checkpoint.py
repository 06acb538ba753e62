#!/usr/bin/python3
"""Find files that a checkpoint's descriptions name but its SHA256SUMS does not list.

Run on a host as `python3 -I - FOLDER`, with this text on standard input: standard library only,
Python 3.11. Without such a file a model may load and give wrong results: a sentence-transformers
folder without `1_Pooling/config.json` gives wrong vectors and no error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
MODULES = "modules.json"


def named(folder: Path) -> Iterator[tuple[str, str]]:
    """Each file that a description in ``folder`` names, after that description's own name."""
    for index in INDEXES:
        for name in sorted(set(_read(folder / index, dict).get("weight_map", {}).values())):
            yield index, str(name)
    for module in _read(folder / MODULES, list):
        kind, path = str(module.get("type", "")), str(module.get("path", ""))
        # Modules without settings have an empty folder.
        if path and not kind.endswith(".Normalize"):
            yield MODULES, f"{path}/config.json"
    for code in _read(folder / "config.json", dict).get("auto_map", {}).values():
        for each in code if isinstance(code, list) else [code]:
            # The text before two dashes is another repository.
            if isinstance(each, str) and "--" not in each:
                yield "config.json", f"{each.partition('.')[0]}.py"


def _read(path: Path, kind: type[Any]) -> Any:
    said = json.loads(path.read_text(encoding="utf-8")) if path.exists() else kind()
    if not isinstance(said, kind):
        raise TypeError(path.name)
    return said


def main(folder: Path) -> int:
    """Print the errors in the list of files in ``folder``; returns 1 if there are any."""
    lines = (folder / "SHA256SUMS").read_text(encoding="utf-8").splitlines()
    listed = {line.partition("  ")[2] for line in lines}
    try:
        missing = [(who, name) for who, name in named(folder) if name not in listed]
    except (ValueError, TypeError, AttributeError):
        print("lists an index that cannot be read")  # noqa: T201
        return 1
    for who, name in missing[:1]:
        print(f"lists no {name}, which {who} names")  # noqa: T201
    return bool(missing)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
