"""Set every card to its declared limits; the unit on the host keeps them."""

from __future__ import annotations

from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.gpu_limits import GpuLimits
from holdfast.gpu import limits
from holdfast.settings import Gpus

_SAY_WHY = (
    "{ run=$(systemctl show --property=InvocationID --value %s); journalctl --sync;"
    " journalctl --quiet --no-pager --output=cat --priority=err _SYSTEMD_INVOCATION_ID=$run >&2;"
    " exit 1; }"
)
"""The output of the unit's own program in its last run, without systemd's."""


def run_unit(name: str) -> str:
    """The command that reruns a oneshot unit and, if it fails, prints the program's output."""
    return f"systemctl restart {name} || {_SAY_WHY % name}"


@operation()
def held(gpus: Gpus) -> Generator[StringCommand, None, None]:
    """Run the unit if a card lacks its declared limits, or the last run failed. Expects the
    program, its configuration and its units. Fails with the program's sentence for each card that
    is gone, out of range or does not keep its limit.

    For example::

        gpu_limits.held(name="Have every card at its limits", gpus=settings.gpus)
    """
    state = host.get_fact(GpuLimits)
    if state.unread:
        yield StringCommand("systemctl daemon-reload")
    is_held = not any(
        limits.not_held(limits.declared(gpus, state.modes), state.cards, state.locked)
    )
    if not (is_held and state.has_run and state.succeeded):
        yield StringCommand(run_unit(limits.SERVICE))
