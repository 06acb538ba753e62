"""`python -m holdfast.gpu INVENTORY`: the ``gpus`` block of each live host. Changes nothing."""

from __future__ import annotations

import sys

from pyinfra.api import Inventory

from facts.gpu import GpuPicture
from holdfast import inventory_file, live
from holdfast.gpu.proposal import proposal


def propose(inventory: Inventory) -> int:
    """Print the proposal of every host; 1 where one of them did not answer."""
    status = 0
    for host, picture in live.answers(inventory, GpuPicture):
        if picture is None:
            status = 1
        else:
            print(proposal(host.name, picture))  # noqa: T201
    return status


def main(arguments: list[str]) -> int:
    """Propose for the hosts of one inventory file; the exit status is 0 when all answered."""
    if len(arguments) != 1:
        print("usage: python -m holdfast.gpu INVENTORY", file=sys.stderr)  # noqa: T201
        return 2
    with inventory_file.refusals():
        inventory_file.load(arguments[0])
    return propose(inventory_file.read(arguments[0]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
