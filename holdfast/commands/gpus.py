"""`holdfast gpus INVENTORY`: the ``gpus`` block of each live host."""

from __future__ import annotations

from typing import TYPE_CHECKING

from holdfast.commands import Inventory

if TYPE_CHECKING:
    from pyinfra.api import Inventory as Hosts


def gpus(inventory: Inventory) -> int:
    """Print the gpus block of each live host, ready to paste."""
    from holdfast import inventory_file

    inventory_file.load(inventory)
    return propose(inventory_file.read(inventory))


def propose(hosts: Hosts) -> int:
    """Print the proposal of every host; return 1 if one of them did not answer."""
    from facts.gpu import GpuPicture
    from holdfast import live
    from holdfast.gpu.proposal import proposal

    status = 0
    for host, picture in live.answers(hosts, GpuPicture):
        if picture is None:
            status = 1
        else:
            print(proposal(host.name, picture))
    return status
