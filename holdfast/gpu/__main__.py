"""`python -m holdfast.gpu INVENTORY`: the ``gpus`` block of each live host. Changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from pyinfra.api import Config, Inventory, State
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_inventory, ctx_state
from pyinfra_cli.inventory import make_inventory_from_files

from facts.gpu import GpuPicture
from holdfast import inventory_file
from holdfast.gpu.proposal import proposal


def propose(inventory: Inventory) -> int:
    """Print the proposal of every host; 1 where one of them did not answer."""
    state = State(inventory, Config())  # type: ignore[no-untyped-call]
    state.set_stage(StateStage.Connect)
    status = 0
    with ctx_state.use(state), ctx_inventory.use(inventory):
        for host in inventory:
            try:
                host.connect(show_errors=False, raise_exceptions=True)
                state.activate_host(host)
                picture = host.get_fact(GpuPicture)
                host.disconnect()
            except PyinfraError as error:
                print(f"{host.name}: it did not answer: {error}", file=sys.stderr)  # noqa: T201
                status = 1
                continue
            # A fact that fails, for want of sudo perhaps, is printed by pyinfra and not raised.
            if host in state.failed_hosts:
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
    with ctx_state.use(State()):
        inventory = make_inventory_from_files(arguments[0], cwd=str(Path.cwd()))
    return propose(inventory)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
