"""`holdfast deploy INVENTORY`: make the machines match the inventory."""

from __future__ import annotations

from holdfast.commands import SITE, Deploy, Inventory


def deploy(inventory: Inventory, deploy: Deploy = SITE) -> int:
    """Make the machines match the inventory."""
    from holdfast import inventory_file
    from holdfast.deploy import run

    inventory_file.load(inventory)
    return run(inventory, deploy)
