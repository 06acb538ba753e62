"""Backups to two places, each restored and compared."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import backup
from holdfast.settings import HostSettings
from operations import backup as backup_operations
from operations import program


@deploy("Backup")
def apply(settings: HostSettings) -> None:
    """Install restic with its jobs and timers, and prove a restore from each repository."""
    wanted = settings.backup
    if wanted is None:
        return
    program.have(what="the backup", programs=backup.programs(settings))
    backup_operations.proved(
        name="Have a snapshot in each place, restored and compared",
        paths={
            repository.name: backup.snapshot_paths(settings, repository)
            for repository in wanted.repositories
        },
    )
