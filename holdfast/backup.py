"""The declared paths to back up, and the units of each repository."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote, urlsplit

from facts import firewall, places, ssh
from facts.backup import STATE
from facts.gpu_driver import REBOOT_MARKER
from facts.places import CONFIGURATION, CREDENTIALS, SYSTEM
from holdfast import alerts, integrity, ledger, storage
from holdfast.host_programs import backup as backup_program
from holdfast.registry import declared_services
from holdfast.render import render
from holdfast.routing import ledger_service
from holdfast.sandbox import Directive, sandbox
from holdfast.secrets import Secret
from holdfast.settings import SERVERS, Backup, DataPath, HostSettings, Repository, Service
from holdfast.shipping import path_of

PROGRAM = path_of(backup_program)
RESTORE = "/usr/local/sbin/holdfast-restore"
CACHE = str(backup_program.Places.cache)
JOBS = str(backup_program.Places.jobs)

ROOTS = (places.STATE,)
"""Folders in which every path must be declared as state, secret or derived."""

HOUSE = (
    # The host's identity: clients and `known_hosts` must not notice a rebuild.
    DataPath(path="/etc/ssh", backup="secret"),
    DataPath(path=CONFIGURATION, backup="secret"),
    DataPath(path=STATE, backup="derived"),
    DataPath(path=firewall.ROLLBACK_STATE, backup="derived"),
    DataPath(path=ssh.ROLLBACK_STATE, backup="derived"),
    DataPath(path=REBOOT_MARKER, backup="derived"),
    DataPath(path=f"{places.STATE}/ledger", backup="derived"),
    DataPath(path=f"{places.STATE}/queue", backup="derived"),
    DataPath(path=f"{places.STATE}/engines", backup="derived"),
    # Earlier versions kept the records of replacements in a folder of each server.
    *(DataPath(path=f"{places.STATE}/{server}", backup="derived") for server in SERVERS),
    DataPath(path=integrity.STATE, backup="derived"),
)
"""Paths that every host has."""

FRESHNESS_SCHEDULE = "hourly"


def data(settings: HostSettings) -> list[DataPath]:
    """Every declared path of the host with its class, each once, sorted by path.

    Raises:
        ValueError: a path is declared with two classes.
    """
    backup_paths = settings.backup.paths if settings.backup else []
    declared = [
        *HOUSE,
        DataPath(path=settings.storage.models_path, backup="derived"),
        *(path for service in declared_services(settings) for path in service.data),
        *backup_paths,
    ]
    classes: dict[str, DataPath] = {}
    for item in declared:
        known = classes.setdefault(item.path, item)
        if known.backup != item.backup:
            raise ValueError(f"{item.path} is declared both {known.backup} and {item.backup}")
    return [classes[path] for path in sorted(classes)]


def _outermost(paths: Sequence[str]) -> list[str]:
    return [
        path
        for path in paths
        if not any(path != other and path.startswith(f"{other}/") for other in paths)
    ]


def sources(settings: HostSettings) -> list[str]:
    """The paths in a snapshot of the host; none lies within another."""
    return _outermost([item.path for item in data(settings) if item.backup != "derived"])


def derived(settings: HostSettings) -> list[str]:
    """The paths that are left out of a snapshot."""
    return [item.path for item in data(settings) if item.backup == "derived"]


def mount_of(settings: HostSettings, repository: Repository) -> str | None:
    """The mount point of the declared mount that holds a ``path`` repository, if there is one."""
    mount = storage.mount_of(settings.storage.mounts, repository.path or "")
    return mount.path if mount else None


def job(settings: HostSettings, repository: Repository, restic: str) -> dict[str, Any]:
    """The job that `holdfast.host_programs.backup.Job` reads, as JSON-ready values."""
    if settings.backup is None:
        raise ValueError(f"{settings.hostname} declares no backup")
    keep = settings.backup
    return {
        "repository": repository.name,
        "host": settings.hostname,
        "restic": restic,
        "sources": sources(settings),
        "derived": derived(settings),
        "roots": list(ROOTS),
        "mount": mount_of(settings, repository),
        "append_only": repository.append_only,
        "keep": {
            "daily": keep.keep_daily,
            "weekly": keep.keep_weekly,
            "monthly": keep.keep_monthly,
        },
        "max_age_hours": keep.max_age_hours,
        "max_restore_age_days": keep.max_restore_age_days,
    }


def snapshot_paths(settings: HostSettings, repository: Repository) -> list[str]:
    """The paths in a complete snapshot in ``repository``: the sources and their manifest."""
    return sorted([*sources(settings), f"{STATE}/manifest-{repository.name}.jsonl"])


def location(repository: Repository, user_password: Secret | None) -> Secret:
    """The location of the repository for restic, with credentials; only root reads that file.

    Raises:
        ValueError: a ``path`` repository has no path, or a ``rest`` repository no url.
    """
    if repository.kind == "path":
        if repository.path is None:
            raise ValueError(f"repository {repository.name} has no path")
        return Secret(repository.path)
    if repository.url is None:
        raise ValueError(f"repository {repository.name} has no url")
    scheme, rest = repository.url.split("://", 1)
    if repository.user is None or user_password is None:
        return Secret(f"rest:{repository.url}")
    password = quote(user_password.get_secret_value(), safe="")
    return Secret(f"rest:{scheme}://{repository.user}:{password}@{rest}")


def peers(repository: Repository, hosts: Mapping[str, str]) -> list[str] | None:
    """The networks (CIDR) that restic must reach; None if only DNS knows them.

    ``hosts`` maps the names of /etc/hosts to addresses.
    """
    if repository.url is None:
        return []
    name = urlsplit(repository.url).hostname or ""
    try:
        address = ipaddress.ip_address(hosts.get(name, name))
    except ValueError:
        return None
    return [str(ipaddress.ip_network(address))]


def _sandbox(
    settings: HostSettings, repository: Repository, unit: str, restores: bool
) -> list[Directive]:
    reaches = peers(repository, settings.base.hosts)
    reads_all = "CAP_DAC_READ_SEARCH"
    relaxed = [
        Directive("PrivateUsers", "no", "files of every user are read"),
        Directive("ProtectHome", "read-only", "a declared path may lie in a home"),
        Directive("ReadWritePaths", f"{STATE} {CACHE}", "records, staging and restic's index"),
    ]
    if repository.path is not None:
        # The repository's own folder may not be there yet, and a unit cannot start without it.
        place = mount_of(settings, repository) or repository.path
        relaxed.append(Directive("ReadWritePaths", place, "the repository lies there"))
    if restores:
        capabilities = f"{reads_all} CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID"
        relaxed += [
            Directive("CapabilityBoundingSet", capabilities, "restored files get their owners"),
            Directive("SystemCallFilter", "@system-service", "restored files get their owners"),
            Directive("SystemCallFilter", "~@resources @keyring", "all but what owners need"),
            Directive("RestrictSUIDSGID", "no", "restored files get their modes"),
        ]
    else:
        relaxed.append(Directive("CapabilityBoundingSet", reads_all, "files of every user"))
    if reaches is None:
        relaxed.append(Directive("IPAddressDeny", "", "only DNS knows where the repository is"))
    service = Service(name="backup", unit=unit, user="root", tier="T1")
    # An NFS export needs no network here: the kernel mounts it.
    isolated = reaches == []
    return sandbox(service, isolated=isolated, peers=reaches or [], relaxed=relaxed)


def unit_files(settings: HostSettings) -> dict[str, str]:
    """Path to text of every backup unit of the host."""
    backup = settings.backup
    if backup is None:
        raise ValueError(f"{settings.hostname} declares no backup")
    units: dict[str, str] = {}
    for repository in backup.repositories:
        for stem, command, schedule, restores in _jobs(backup):
            name = f"{stem}@{repository.name}"
            values = {
                "stem": stem,
                "command": command,
                "repository": repository,
                "schedule": schedule,
                "program": PROGRAM,
                "credentials": CREDENTIALS,
                "dump": ledger.DUMP if ledger_service(settings) and command == "backup" else None,
                "mount": mount_of(settings, repository),
                "state": STATE,
                "on_failure": alerts.ON_FAILURE,
                "sandbox": _sandbox(settings, repository, f"{stem}.service", restores),
            }
            units[f"{name}.service"] = render("backup/holdfast-backup.service.j2", **values)
            units[f"{name}.timer"] = render("backup/holdfast-backup.timer.j2", **values)
    return {f"{SYSTEM}/{name}": text for name, text in units.items()}


def _jobs(backup: Backup) -> list[tuple[str, str, str, bool]]:
    # Unit stem, the program's command, when it runs, whether it restores.
    return [
        ("holdfast-backup", "backup", backup.schedule, False),
        ("holdfast-backup-check", "check", FRESHNESS_SCHEDULE, False),
        ("holdfast-restore-check", "restore-check", backup.restore_check_schedule, True),
    ]


def files_of(repository: Repository) -> dict[str, str]:
    """The files of a repository on a host, besides its units, name to path: job and secrets."""
    stem = f"{CREDENTIALS}/backup-{repository.name}"
    return {
        "job": f"{JOBS}/{repository.name}.json",
        "location": f"{stem}-location",
        "password": f"{stem}-password",
    }


def job_text(settings: HostSettings, repository: Repository, restic: str) -> str:
    """The text of the job file of ``repository``."""
    return json.dumps(job(settings, repository, restic), indent=1) + "\n"


def unproved(record: Mapping[str, Any], paths: Sequence[str]) -> bool:
    """Whether a repository still needs its first snapshot of ``paths``, or a restore that worked.

    After a rebuild the snapshot of the old machine counts: see `first` in the program.
    """
    taken = record.get("backup")
    if not taken or not record.get("restore_check", {}).get("ok"):
        return True
    return "adopted" not in taken and taken["paths"] != list(paths)
