"""Backups to two places, each restored and compared."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import alerts, backup
from holdfast.host_programs import backup as backup_program
from holdfast.secrets import require
from holdfast.settings import HostSettings, Repository
from operations import artefact, host_files, packages, units
from operations import backup as backup_operations
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit

RESTIC = "restic"


def _secrets(repository: Repository) -> list[HostFile]:
    paths = backup.files_of(repository)
    user_password = require(repository.user_password) if repository.user_password else None
    location = backup.location(repository, user_password)
    password = require(repository.password)
    return [
        HostFile(paths["location"], f"{location.get_secret_value()}\n", mode="600"),
        HostFile(paths["password"], f"{password.get_secret_value()}\n", mode="600"),
    ]


@deploy("Backup")
def apply(settings: HostSettings) -> None:
    """Install restic with its jobs and timers, and prove a restore from each repository."""
    wanted = settings.backup
    if wanted is None:
        return
    pinned = None if wanted.restic == "distribution" else wanted.restic
    packages.present(
        name="Install what the backup needs",
        packages=[packages.PYTHON, *(artefact.PACKAGES if pinned else [RESTIC])],
    )
    restic = "/usr/bin/restic"
    if pinned:
        restic = f"{artefact.directory(RESTIC, pinned)}/restic"
        artefact.installed(
            name="Install restic",
            program=RESTIC,
            artefact=pinned,
            unpack="bz2" if pinned.url.endswith(".bz2") else "none",
            file="restic",
        )
    unit_files = backup.unit_files(settings)
    host_files.place(
        name="Write the backup's jobs, units and keys",
        directories=[
            host_files.CONFIGURATION,
            host_files.CREDENTIALS,
            HostDirectory(backup.JOBS),
            *(
                HostDirectory(repository.path, mode="700")
                for repository in wanted.repositories
                if repository.path and backup.mount_of(settings, repository) is None
            ),
        ],
        files=[
            host_files.program(backup_program),
            HostFile(
                backup.RESTORE, f'#!/bin/sh\nexec {backup.PROGRAM} restore "$@"\n', mode="755"
            ),
            *(
                HostFile(
                    backup.files_of(repository)["job"],
                    backup.job_text(settings, repository, restic),
                )
                for repository in wanted.repositories
            ),
            *(file for repository in wanted.repositories for file in _secrets(repository)),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in unit_files.items()),
        ],
    )
    timers = [path for path in unit_files if path.endswith(".timer")]
    units.settle(
        name="Start the backup's timers",
        units=[Unit(path.rpartition("/")[2], restart_after=[path]) for path in timers],
    )
    backup_operations.proved(
        name="Have a snapshot in each place, restored and compared",
        paths={
            repository.name: backup.snapshot_paths(settings, repository)
            for repository in wanted.repositories
        },
    )
