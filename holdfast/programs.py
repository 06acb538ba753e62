"""Every program of ours on a host, by its declaration."""

from __future__ import annotations

from holdfast import floor, ledger, router
from holdfast.service import Program
from holdfast.settings import HostSettings


def programs(settings: HostSettings) -> list[Program]:
    """The programs that a host's settings declare, in the order of the capabilities."""
    serves = floor.program(settings)
    return [
        *([serves] if serves else []),
        *ledger.programs(settings),
        *(each for declared in settings.routers for each in router.programs(settings, declared)),
    ]
