"""What Holdfast owns on a host, by name, and how much of it the inventory declares.

Units, configuration and keys carry names that only Holdfast gives. Such a file that the inventory
does not declare is left over from an entry that was removed. Data is not among them: it stays.
"""

from __future__ import annotations

from facts.places import CREDENTIALS, SYSTEM
from holdfast import backup
from holdfast.capabilities import CAPABILITIES
from holdfast.gpu import limits
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings


def _backup(settings: HostSettings) -> list[str]:
    if settings.backup is None:
        return []
    kept = [backup.files_of(repository) for repository in settings.backup.repositories]
    return [*backup.unit_files(settings), *(path for each in kept for path in each.values())]


def _limits(settings: HostSettings) -> list[str]:
    return [*limits.unit_files(), limits.CONFIG] if settings.gpus else []


REMOVED: tuple[Capability, ...] = (
    *CAPABILITIES,
    Capability(
        "Backup",
        owns=(
            f"{SYSTEM}/holdfast-backup@*.*",
            *(f"{SYSTEM}/holdfast-{kind}-check@*.*" for kind in ("backup", "restore")),
            *(f"{CREDENTIALS}/backup-*", f"{backup.JOBS}/*.json"),
        ),
        beside=_backup,
    ),
    Capability(
        "GPU limits", owns=(f"{SYSTEM}/holdfast-gpu-limits.*", limits.CONFIG), beside=_limits
    ),
)
"""Every capability whose files are removed when they leave the inventory."""


def patterns() -> list[str]:
    """Every pattern."""
    return [pattern for each in REMOVED for pattern in each.owns]


def declared(settings: HostSettings) -> list[str]:
    """The paths that match `patterns` and belong to what the inventory declares."""
    return [path for each in REMOVED for path in each.declared(settings)]
