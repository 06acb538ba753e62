"""What live hosts answer, outside of a deploy."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from pyinfra.api import Config, FactBase, Inventory, State
from pyinfra.api.exceptions import PyinfraError
from pyinfra.api.host import Host
from pyinfra.api.state import StateStage
from pyinfra.context import ctx_inventory, ctx_state

T = TypeVar("T")


@contextmanager
def session(inventory: Inventory) -> Iterator[State]:
    """What pyinfra needs around it where hosts are connected and asked."""
    state = State(inventory, Config())  # type: ignore[no-untyped-call]
    state.set_stage(StateStage.Connect)
    with ctx_state.use(state), ctx_inventory.use(inventory):
        yield state


def answers(inventory: Inventory, fact: type[FactBase[T]]) -> Iterator[tuple[Host, T | None]]:
    """Each host and what it says; None, and told on standard error, where it does not answer."""
    with session(inventory) as state:
        for host in inventory:
            try:
                host.connect(show_errors=False, raise_exceptions=True)
                state.activate_host(host)
                answer: T = host.get_fact(fact)
                host.disconnect()
            except PyinfraError as error:
                print(f"{host.name}: it did not answer: {error}", file=sys.stderr)  # noqa: T201
                yield host, None
                continue
            # A fact that fails, for want of sudo perhaps, is printed by pyinfra and not raised.
            yield host, None if host in state.failed_hosts else answer
