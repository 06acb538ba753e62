"""Every program of ours on a host, from the capabilities."""

from __future__ import annotations

from holdfast.capabilities import CAPABILITIES
from holdfast.service import Program
from holdfast.settings import HostSettings


def programs(settings: HostSettings) -> list[Program]:
    """The programs that a host's settings declare, in the order of the capabilities."""
    return [program for each in CAPABILITIES for program in each.programs(settings)]


def without_network(settings: HostSettings) -> set[str]:
    """The names of the services whose program is isolated, so that their unit has no network."""
    return {program.service.name for program in programs(settings) if program.isolated}
