"""Every program of ours on a host, by its declaration."""

from __future__ import annotations

from holdfast import floor, ledger, router
from holdfast.engines import units
from holdfast.engines.servers import environment
from holdfast.service import Program
from holdfast.settings import HostSettings


def programs(settings: HostSettings) -> list[Program]:
    """The programs that a host's settings declare, in the order of the capabilities."""
    serves = floor.program(settings)
    return [
        *([serves] if serves else []),
        *(
            each
            for names in units.every(settings)
            for each in units.programs(settings, names, environment(settings, names.server))
        ),
        *ledger.programs(settings),
        *(each for declared in settings.routers for each in router.programs(settings, declared)),
    ]


def without_network(settings: HostSettings) -> set[str]:
    """The names of the services whose program is isolated: their unit has no network."""
    return {program.service.name for program in programs(settings) if program.isolated}
