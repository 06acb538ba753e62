"""`holdfast sovereignty INVENTORY`: show whose data can leave each host, and refused attempts."""

from __future__ import annotations

from holdfast.commands import Inventory


def sovereignty(inventory: Inventory) -> int:
    """Show whose data can leave each host, and refused attempts."""
    from rich.console import Console

    from facts.egress import EgressAttempts
    from holdfast import inventory_file, live
    from holdfast.registry import declared_services
    from holdfast.sovereignty import sockets, table

    hosts = inventory_file.load(inventory)
    console, status = Console(), 0
    for host, seen in live.answers(inventory_file.read(inventory), EgressAttempts):
        if seen is None:
            status = 1
        else:
            console.print(table(host.name, hosts[host.name], seen))
            if any(service.tier == "T1" for service in declared_services(hosts[host.name])):
                console.print(sockets(host.name, hosts[host.name], seen))
    return status
