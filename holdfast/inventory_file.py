"""An inventory file read as pyinfra's command line reads it; nothing is connected to."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from click import ClickException
from pyinfra.api import State
from pyinfra.api.inventory import Inventory
from pyinfra.context import ctx_state
from pyinfra_cli.inventory import make_inventory_from_files
from pyinfra_cli.util import PYTHON_CODES

from holdfast import site
from holdfast.connector import RackConnector
from holdfast.refusal import Refusal, Refused
from holdfast.settings import HostSettings


def read(path: str) -> Inventory:
    """The inventory file ``path`` as pyinfra reads it, unchecked.

    Raises:
        click.ClickException: the file itself fails when Python runs it.
    """
    # It keeps a file's code by its name; one that was written anew is read anew.
    PYTHON_CODES.pop(path, None)
    with ctx_state.use(State()):
        inventory: Inventory = make_inventory_from_files(path, cwd=str(Path.cwd()))
    return inventory


def load(path: str) -> dict[str, HostSettings]:
    """The settings of every host in the inventory file ``path``.

    Raises:
        Refused: it cannot work as it is written.
        click.ClickException: the file itself fails when Python runs it.
    """
    if not Path(path).is_file():
        raise Refused([Refusal(path, "path", path, "no such file", "name a file in inventories/")])
    inventory = read(path)
    if not len(inventory):
        raise Refused([Refusal(path, "hosts", [], "there is no host", "list one as @rack/NAME")])
    # Any other connector would open connections before the inventory is checked.
    refusals = [
        Refusal(path, "hosts", host.name, "this host skips the checks", f"write @rack/{host.name}")
        for host in inventory
        if host.connector_cls is not RackConnector
    ]
    if refusals:
        raise Refused(refusals)
    return site.load(inventory)


@contextmanager
def refusals() -> Iterator[None]:
    """Tell why an inventory cannot work and end the program with status 1."""
    try:
        yield
    except ClickException as error:
        error.show()
    except Refused as refused:
        for refusal in refused.refusals:
            print(refusal, file=sys.stderr)  # noqa: T201
    else:
        return
    raise SystemExit(1)
