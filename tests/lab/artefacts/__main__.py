"""`python -m tests.lab.artefacts build`: build what is not built yet, and say what each took."""

from __future__ import annotations

import argparse

from rich.console import Console

from tests.lab import artefacts
from tests.lab.artefacts.store import Entry


def _size_mib(entry: Entry) -> float:
    files = (path for path in entry.directory.rglob("*") if path.is_file())
    return sum(path.stat().st_size for path in files) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["build"])
    parser.parse_args()
    console = Console()

    def say(name: str, entry: Entry) -> None:
        console.print(
            f"{name:22}{entry.version:14}{_size_mib(entry):7.1f} MiB"
            f"  built in {entry.build_seconds:.1f} s"
        )

    with console.status("building the lab's artefacts"):
        artefacts.build(say)


if __name__ == "__main__":
    main()
