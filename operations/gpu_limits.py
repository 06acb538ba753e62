"""Have every card at its declared limits now; the unit on the host keeps it there."""

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
"""What the unit's own program said in its last run, and not systemd about it."""


def run_unit(name: str) -> str:
    """The command that reruns a oneshot unit and, where it fails, says what its program said."""
    return f"systemctl restart {name} || {_SAY_WHY % name}"


@operation()
def held(gpus: Gpus) -> Generator[StringCommand, None, None]:
    """Run the unit where a card has not its declared limits, or the last run has failed.

    Expects the program, its configuration and its units in place. Fails with the program's
    sentence for each card that is gone, out of range or does not keep what it was set to.
    """
    state = host.get_fact(GpuLimits)
    if state.unread:
        yield StringCommand("systemctl daemon-reload")
    is_held = not any(
        limits.not_held(limits.declared(gpus, state.modes), state.cards, state.locked)
    )
    if not (is_held and state.has_run and state.succeeded):
        yield StringCommand(run_unit(limits.SERVICE))
