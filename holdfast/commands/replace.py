"""`holdfast replace INVENTORY ENGINE MODEL`: replace the model of one engine."""

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
    """Replace the model of an engine, or go back to the previous one."""
    from holdfast import inventory_file
    from holdfast.deploy import run
    from holdfast.engines.replacement import with_model

    # Refused here already, before any connection.
    with_model(inventory_file.load(inventory), engine, model)
    # A deploy file takes no arguments, so the environment carries them.
    os.environ.update(ENGINE=engine, MODEL=model)
    return run(inventory, "deploys/replace.py")
