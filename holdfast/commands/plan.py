"""`holdfast plan INVENTORY`: check the inventory, and show what a deploy would change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from holdfast.commands import SITE, Deploy, Inventory

if TYPE_CHECKING:
    from holdfast.settings import HostSettings


def plan(
    inventory: Inventory,
    deploy: Deploy = SITE,
    offline: Annotated[
        bool, typer.Option("--offline", help="Check the inventory alone; connect to no host.")
    ] = False,
) -> int:
    """Check the inventory, and show what a deploy would change."""
    from holdfast import inventory_file

    hosts = inventory_file.load(inventory)
    for name, settings in hosts.items():
        _show(name, settings)
    print(f"{len(hosts)} host{'' if len(hosts) == 1 else 's'}, nothing to refuse", flush=True)
    if offline:
        return 0
    from holdfast.deploy import run

    return run(inventory, deploy, dry=True)


def _show(name: str, settings: HostSettings) -> None:
    """Print the load of the host's power supplies and the memory of its engines' cards."""
    from rich.console import Console

    from holdfast.engines.fit import fit_of
    from holdfast.engines.server import peer_word
    from holdfast.engines.servers import served
    from holdfast.fit.report import table
    from holdfast.gpu import power

    console = Console()
    if settings.gpus is not None and (budget := power.table(settings.gpus)):
        print(f"{name}: load of its power supplies\n{budget}")
    for _, server, engine in served(settings):
        what = f"{name}: {server.title}'s engine {engine.name}"
        if word := peer_word(engine):
            print(f"{what}: {word}")
        if server.memory is None:
            print(f"{what}: Holdfast does not know how much memory it needs")
        elif fit := fit_of(settings, engine):
            console.print(what, table(fit), sep="\n")
            if uncounted := server.memory.uncounted & set(engine.flags):
                console.print(f"not counted: {', '.join(sorted(uncounted))}")
