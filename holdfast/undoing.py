"""The unit that undoes a change which was killed half-way; its instance names what was changed.

`holdfast.host_programs.shared.undoing` makes such changes, and starts this unit.
"""

from __future__ import annotations

from collections.abc import Sequence

from holdfast.sandbox import Directive
from holdfast.service import Program, Words
from holdfast.settings import Peer, Service


def undo(
    unit: str,
    *,
    what: str,
    command: Words,
    writes: Sequence[str],
    others: str,
    calls: Sequence[str] = (),
) -> Program:
    """The template ``unit``, which undoes ``what`` by ``command``.

    It writes files below the paths ``writes``; ``others`` says whose they are. ``calls`` are the
    networks (CIDR) that it may call; without them it has no network.
    """
    name = unit.removeprefix("holdfast-").removesuffix("@.service")
    return Program(
        service=Service(
            name=name,
            unit=unit,
            user="root",
            tier="T1",
            peers=[Peer(network=network) for network in calls],
        ),
        description=f"Holdfast: undo {what} after it was killed",
        kind="oneshot",
        command=command,
        # A half-done change answers no requests, so it is restarted until it exits by itself. The
        # restored program may take any time to load.
        restart="on-abnormal",
        restart_seconds=1,
        stop_seconds="infinity",
        order=(Directive("StartLimitIntervalSec", "0"),),
        isolated=not calls,
        relaxed=(
            *(Directive("ReadWritePaths", f"-{path}", "what it undoes") for path in writes),
            Directive("CapabilityBoundingSet", "CAP_DAC_OVERRIDE", others),
            Directive("PrivateUsers", "no", others),
        ),
    )
