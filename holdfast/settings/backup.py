"""The settings under ``backup``, and how a backup treats a path.

For example::

    "backup": {
        "repositories": [
            {
                "name": "nas",
                "kind": "path",
                "path": "/mnt/nas/backup/rack",
                "password": "RESTIC_NAS_PASSWORD",
            },
            {
                "name": "offsite",
                "kind": "rest",
                "url": "https://backup.home.arpa:8000/rack",
                "user": "rack",
                "user_password": "OFFSITE_USER_PASSWORD",
                "password": "RESTIC_OFFSITE_PASSWORD",
                "append_only": True,
            },
        ],
        "paths": [{"path": "/srv/projects", "backup": "state"}],
        "schedule": "*-*-* 03:30:00",
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.sources import Artefact
from holdfast.types import AbsolutePath, Calendar, Model, Name, SecretName, Sentence, Url


class DataPath(Model):
    """A directory or file of a service, and how a backup treats it.

    ``state`` is backed up; ``secret`` is backed up and never world readable; ``derived`` can be
    recreated (models, caches) and is left out.
    """

    path: AbsolutePath
    backup: Literal["state", "secret", "derived"]


class Repository(Model):
    """A repository that restic writes to."""

    name: Name
    kind: Literal["path", "rest"]
    path: AbsolutePath | None = None
    """For ``path``: a directory on a declared mount or another disk."""
    url: Url | None = None
    """For ``rest``: the rest-server, without credentials."""
    user: Name | None = None
    user_password: SecretName | None = None
    password: SecretName
    """Encrypts the repository; keep a copy off the host."""
    append_only: bool = False
    """The server forbids deletion, so another machine must prune old snapshots."""


class Backup(Model):
    """Backups by restic to two places, with regular test restores."""

    restic: Artefact | Literal["distribution"] = "distribution"
    """A ``restic`` binary compressed with bzip2, as released upstream, or the distribution's."""
    repositories: list[Repository] = Field(min_length=1)
    single_place_waiver: Sentence | None = Field(default=None, min_length=10, max_length=200)
    """Why one repository is enough; without it two are required."""
    paths: list[DataPath] = []
    """Data besides that of the declared services."""
    schedule: Calendar = "*-*-* 03:30:00"
    restore_check_schedule: Calendar = "Sun *-*-* 05:00:00"
    max_age_hours: int = Field(default=26, ge=1)
    """An alert is raised when the newest snapshot is older."""
    max_restore_age_days: int = Field(default=15, ge=1)
    """An alert is raised when the last good restore is older. The default is two runs of the
    schedule, and a day."""
    keep_daily: int = Field(default=7, ge=1)
    keep_weekly: int = Field(default=5, ge=0)
    keep_monthly: int = Field(default=12, ge=0)
