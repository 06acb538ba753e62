"""Facts of live hosts, outside of a deploy."""

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
    """The state that pyinfra needs to connect to hosts and read facts."""
    state = State(inventory, Config())  # type: ignore[no-untyped-call]
    state.set_stage(StateStage.Connect)
    with ctx_state.use(state), ctx_inventory.use(inventory):
        yield state


def answers(inventory: Inventory, fact: type[FactBase[T]]) -> Iterator[tuple[Host, T | None]]:
    """Each host and its fact; None if it does not answer, which is printed on standard error."""
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
            # pyinfra prints a fact that fails, for example without sudo, and does not raise it.
            yield host, None if host in state.failed_hosts else answer
