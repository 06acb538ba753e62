"""Plans `deploys/site.py` for a rack on pyinfra's fake connector; prints a line an operation.

Run as a program: pyinfra's command line patches sockets and threads when it is imported.
"""

from __future__ import annotations

import sys
from pathlib import Path

from pyinfra.api import Config, Inventory, State
from pyinfra.api.connect import connect_all
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_inventory, ctx_state
from pyinfra_cli.inventory import make_inventory_from_files
from pyinfra_cli.util import load_deploy_file

ROOT = Path(__file__).resolve().parents[2]


def main(path: str, ground: str) -> None:
    """Print the plan of every host of the inventory file ``path``, as bare as ``ground`` says."""
    state = State(check_for_changes=False)
    with ctx_state.use(state):
        real = make_inventory_from_files(path, cwd=str(ROOT))
        answers = {"cat /etc/os-release": Path(ground).read_text().splitlines()}
        fakes = [
            (
                f"@fake/{host.name}",
                {**host.data.dict(), "fake_responses": answers, "fake_delay": 0.0}
                | {"fake_delay_jitter": 0.0},
            )
            for host in real
        ]
        inventory = Inventory((fakes, {}))  # type: ignore[no-untyped-call]
        with ctx_inventory.use(inventory):
            state.init(inventory, Config())  # type: ignore[no-untyped-call]
            state.set_stage(StateStage.Connect)
            connect_all(state)
            state.set_stage(StateStage.Prepare)
            load_deploy_file(state, str(ROOT / "deploys" / "site.py"))
    for operation in state.get_op_order():  # type: ignore[no-untyped-call]
        print(" / ".join(sorted(state.op_meta[operation].names)))


if __name__ == "__main__":
    main(*sys.argv[1:])
