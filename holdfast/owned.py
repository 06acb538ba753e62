"""What Holdfast owns on a host, by name, and how much of it the inventory declares.

Units, configuration and keys carry names that only Holdfast gives. Such a file that the inventory
does not declare is left over from an entry that was removed. Data is not among them: it stays.
"""

from __future__ import annotations

from facts.places import CREDENTIALS, SYSTEM
from holdfast import backup, docker, tailnet, tailnet_membership, tailnet_rules
from holdfast.capabilities import CAPABILITIES
from holdfast.programs import HOUSE
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings


def _backup(settings: HostSettings) -> list[str]:
    if settings.backup is None:
        return []
    kept = [backup.files_of(repository) for repository in settings.backup.repositories]
    return [*backup.unit_files(settings), *(path for each in kept for path in each.values())]


_TAILNET = (
    *(tailnet.ENVIRONMENT, tailnet.DROP_IN),
    *(tailnet_rules.PROGRAM, tailnet_rules.RULES, *tailnet_rules.unit_files()),
    *(tailnet_membership.PROGRAM, tailnet_membership.CONFIG, *tailnet_membership.unit_files()),
)
_DOCKER = (docker.DROP_IN, docker.LINKS_SCRIPT)

REMOVED: tuple[Capability, ...] = (
    Capability(
        "Tailnet",
        owns=_TAILNET,
        beside=lambda settings: _TAILNET if settings.tailnet else (),
        stops=("tailscaled.service",),
        keeps=("/var/lib/tailscale",),
        carries_login=True,
    ),
    Capability(
        "Docker",
        owns=_DOCKER,
        beside=lambda settings: _DOCKER if settings.docker else (),
        stops=("docker.socket", "docker.service", "containerd.service"),
        keeps=("/var/lib/docker", docker.DAEMON_JSON),
    ),
    *CAPABILITIES,
    *HOUSE,
    Capability(
        "Backup",
        owns=(
            f"{SYSTEM}/holdfast-backup@*.*",
            *(f"{SYSTEM}/holdfast-{kind}-check@*.*" for kind in ("backup", "restore")),
            *(f"{CREDENTIALS}/backup-*", f"{backup.JOBS}/*.json"),
        ),
        beside=_backup,
        keeps=(backup.STATE,),
    ),
)
"""Every capability whose files are removed when they leave the inventory."""


def patterns() -> list[str]:
    """Every pattern."""
    return [pattern for each in REMOVED for pattern in each.owns]


def declared(settings: HostSettings) -> list[str]:
    """The paths that match `patterns` and belong to what the inventory declares."""
    return [path for each in REMOVED for path in each.declared(settings)]
