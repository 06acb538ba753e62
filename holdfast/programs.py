"""Every program of ours on a host, by its declaration."""

from __future__ import annotations

from itertools import chain

from holdfast import floor, ledger, router
from holdfast.service import Program
from holdfast.settings import HostSettings


def programs(settings: HostSettings) -> list[Program]:
    """The programs that a host's settings declare, in the order of the capabilities."""
    behind_routers = [router.behind(settings, declared) for declared in settings.routers]
    serves = floor.program(settings)
    return [*([serves] if serves else []), *ledger.programs(settings), *chain(*behind_routers)]
