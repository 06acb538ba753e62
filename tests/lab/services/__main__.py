"""`python -m tests.lab.services up|down|facts [--dir DIR]`: the lab's services by hand."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.lab.services import DIRECTORY, Services
from tests.lab.services.daemon import stop_all


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["up", "down", "facts"])
    parser.add_argument("--dir", type=Path, default=DIRECTORY, help="where their state is kept")
    arguments = parser.parse_args()
    if arguments.command == "down":
        stop_all(arguments.dir.absolute())
        return
    services = Services(arguments.dir)
    if arguments.command == "up":
        services.start()
    print(json.dumps(services.facts(), indent=1))


if __name__ == "__main__":
    main()
