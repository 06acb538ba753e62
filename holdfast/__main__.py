"""`python -m holdfast INVENTORY`: would this inventory work? Connects to nothing."""

from __future__ import annotations

import sys

from click import ClickException

from holdfast import inventory_file
from holdfast.gpu import power
from holdfast.refusal import Refused


def main(arguments: list[str]) -> int:
    """Check one inventory file; the exit status is 0 when there is nothing to refuse."""
    if len(arguments) != 1:
        print("usage: python -m holdfast INVENTORY", file=sys.stderr)  # noqa: T201
        return 2
    try:
        hosts = inventory_file.load(arguments[0])
    except ClickException as error:
        error.show()
        return 1
    except Refused as refused:
        for refusal in refused.refusals:
            print(refusal, file=sys.stderr)  # noqa: T201
        return 1
    for name, settings in hosts.items():
        if settings.gpus is not None and (budget := power.table(settings.gpus)):
            print(f"{name}: what its power supplies are asked for\n{budget}")  # noqa: T201
    print(f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}, nothing to refuse")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
