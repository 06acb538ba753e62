"""What one capability has on a host: one entry of `holdfast.capabilities`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from holdfast.service.program import Program
from holdfast.service.units import paths
from holdfast.settings import HostSettings, Service

Declared = tuple[str, Service]
"""A service, and the inventory's key that declares it."""


def _nothing(_: HostSettings) -> Sequence[str]:
    return ()


def _no_programs(_: HostSettings) -> Sequence[Program]:
    return ()


@dataclass(frozen=True)
class Capability:
    """What one capability has on a host, each by a function of the host's settings.

    For example::

        Capability("Node exporter", node_exporter.services, programs=node_exporter.programs)
    """

    title: str
    """Its heading in a plan."""
    services: Callable[[HostSettings], Sequence[Declared]] = lambda _: ()
    programs: Callable[[HostSettings], Sequence[Program]] = _no_programs
    owns: tuple[str, ...] = ()
    """Shell patterns of files that only this capability has on a host. Files that the inventory
    does not declare are removed; data never matches."""
    beside: Callable[[HostSettings], Sequence[str]] = _nothing
    """Declared paths that match `owns` and that do not follow from `programs`."""
    first: str = ""
    """The command that runs before `stops`."""
    stops: tuple[str, ...] = ()
    """Units of its distribution packages: stopped and disabled when nothing of it is declared."""
    keeps: tuple[str, ...] = ()
    """Shell patterns of the paths of its data, which stays when the capability is removed."""
    carries_login: bool = False
    """Whether operators log in through it: it is removed only after a login over the LAN."""

    @property
    def is_deployed(self) -> bool:
        """Whether it has programs that a deploy installs and starts."""
        return self.programs is not _no_programs

    def declared(self, settings: HostSettings) -> list[str]:
        """The paths that the inventory declares."""
        return [*paths(self.programs(settings)), *self.beside(settings)]
