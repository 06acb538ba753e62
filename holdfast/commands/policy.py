"""`holdfast policy INVENTORY`: the tailnet's policy as JSON."""

from __future__ import annotations

from holdfast.commands import Inventory


def policy(inventory: Inventory) -> int:
    """Print the tailnet's policy for its control server."""
    import json

    from holdfast import inventory_file
    from holdfast.tailnet_policy import document

    print(json.dumps(document(inventory_file.load(inventory)), indent=2))
    return 0
