"""`holdfast replace INVENTORY ENGINE MODEL`: another model for one engine."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from holdfast.commands import Inventory


def replace(
    inventory: Inventory,
    engine: Annotated[
        str, typer.Argument(metavar="ENGINE", help="The engine's name in the inventory.")
    ],
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="The checkpoint that it shall serve.")
    ],
) -> int:
    """Give an engine another model, or go back to the one before."""
    from holdfast import inventory_file
    from holdfast.deploy import run
    from holdfast.engines.replacement import with_model

    # Refused here already, before a host is connected to.
    with_model(inventory_file.load(inventory), engine, model)
    # pyinfra reads a deploy without arguments.
    os.environ.update(ENGINE=engine, MODEL=model)
    return run(inventory, "deploys/replace.py")
