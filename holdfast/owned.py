"""What Holdfast owns on a host, by name, and how much of it the inventory declares.

Units, configuration and keys carry names that only Holdfast gives. Such a file that the inventory
does not declare is left over from an entry that was removed. Data is not among them: it stays.
"""

from __future__ import annotations

from holdfast import docker
from holdfast.capabilities import CAPABILITIES
from holdfast.programs import HOUSE
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings

_DOCKER = (docker.DROP_IN, docker.LINKS_SCRIPT)

REMOVED: tuple[Capability, ...] = (
    *HOUSE,
    Capability(
        "Docker",
        owns=_DOCKER,
        beside=lambda settings: _DOCKER if settings.docker else (),
        # Containers outlive the engine, and would run on without the rules of their networks.
        first="! systemctl --quiet is-active docker.service"
        " || docker ps --quiet | xargs --no-run-if-empty docker stop",
        stops=("docker.socket", "docker.service", "containerd.service"),
        keeps=("/var/lib/docker", docker.DAEMON_JSON),
    ),
    *CAPABILITIES,
)
"""Every capability whose files are removed when they leave the inventory."""


def patterns() -> list[str]:
    """Every pattern."""
    return [pattern for each in REMOVED for pattern in each.owns]


def declared(settings: HostSettings) -> list[str]:
    """The paths that match `patterns` and belong to what the inventory declares."""
    return [path for each in REMOVED for path in each.declared(settings)]
