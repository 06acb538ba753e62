"""The declared paths to back up, and the units of each repository."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple
from urllib.parse import quote, urlsplit

from facts import firewall, places, ssh, tenants
from facts.backup import STATE
from facts.gpu_driver import REBOOT_MARKER
from facts.places import CONFIGURATION, CREDENTIALS
from holdfast import integrity, ledger, storage
from holdfast.artefact import Archive, Unpack
from holdfast.host_programs import backup as backup_program
from holdfast.registry import declared_services
from holdfast.routing import ledger_service
from holdfast.sandbox import Directive
from holdfast.secrets import Secret
from holdfast.service import Credential, File, Program, Timer
from holdfast.settings import (
    SERVERS,
    Backup,
    DataPath,
    HostSettings,
    Peer,
    Repository,
    Service,
)
from holdfast.shipping import path_of

PROGRAM = path_of(backup_program)
RESTIC = "restic"
STEMS = ("holdfast-backup", "holdfast-backup-check", "holdfast-restore-check")
"""The beginnings of the units' names; a repository's name follows."""
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
    # The record of pulled images, which a rebuild pulls again.
    DataPath(path=tenants.RECORD, backup="derived"),
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


def _restic(backup: Backup) -> Archive | None:
    """The pinned release of restic; None for the distribution's package."""
    if backup.restic == "distribution":
        return None
    unpack: Unpack = "bz2" if backup.restic.url.endswith(".bz2") else "none"
    return Archive(RESTIC, backup.restic, unpack=unpack, file=RESTIC)


def job(settings: HostSettings, repository: Repository) -> dict[str, Any]:
    """The job that `holdfast.host_programs.backup.Job` reads, as JSON-ready values."""
    if settings.backup is None:
        raise ValueError(f"{settings.hostname} declares no backup")
    keep = settings.backup
    release = _restic(keep)
    return {
        "repository": repository.name,
        "host": settings.hostname,
        "restic": f"{release.folder if release else '/usr/bin'}/{RESTIC}",
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


class _Task(NamedTuple):
    stem: str
    command: str
    """What the program is asked to do."""
    schedule: str
    restores: bool = False


def programs(settings: HostSettings) -> list[Program]:
    """What backs up to each repository, sees that it is fresh, and restores from it to compare."""
    backup = settings.backup
    if backup is None:
        return []
    return [
        _program(settings, backup, repository, task)
        for repository in backup.repositories
        for task in _tasks(backup)
    ]


def _program(
    settings: HostSettings, backup: Backup, repository: Repository, task: _Task
) -> Program:
    release = _restic(backup)
    reaches = peers(repository, settings.base.hosts)
    mount = mount_of(settings, repository)
    staging = f"{STATE}/staging-{repository.name}"
    return Program(
        service=Service(
            name="backup",
            unit=f"{task.stem}@{repository.name}.service",
            user="root",
            tier="T1",
            peers=[Peer(network=network) for network in reaches or []],
        ),
        description=f"Holdfast: {task.command} {repository.name}",
        kind="oneshot",
        packages=() if release else (RESTIC,),
        archive=release,
        source=backup_program,
        command=(PROGRAM, task.command, repository.name),
        after=(("/bin/rm", "-rf", staging),) if task.restores else (),
        credentials=_credentials(repository),
        files=(
            File(f"{JOBS}/{repository.name}.json", job_text(settings, repository)),
            File(RESTORE, f'#!/bin/sh\nexec {PROGRAM} restore "$@"\n', mode="755"),
        ),
        folders=(repository.path,) if repository.path and not mount else (),
        state="holdfast/backup",
        cache="holdfast-backup",
        start_seconds=12 * 3600,
        order=(*_order(settings, repository, task),),
        tuned=(
            Directive("Nice", "10"),
            Directive("CPUWeight", "20"),
            Directive("IOSchedulingClass", "idle"),
        ),
        # An NFS export needs no network here: the kernel mounts it.
        isolated=reaches == [],
        relaxed=(*_relaxed(settings, repository, task),),
        timer=Timer(
            "regularly",
            (
                Directive("OnCalendar", task.schedule),
                Directive("Persistent", "true"),
                Directive("RandomizedDelaySec", "10min"),
                Directive("AccuracySec", "1min"),
            ),
        ),
    )


def _order(settings: HostSettings, repository: Repository, task: _Task) -> Iterator[Directive]:
    awaited = ["network-online.target"] if repository.url else []
    if task.command == "backup" and ledger_service(settings):
        awaited.append(ledger.DUMP)
    for unit in awaited:
        yield from (Directive("Wants", unit), Directive("After", unit))
    if mount := mount_of(settings, repository):
        yield Directive("RequiresMountsFor", mount)


def _relaxed(settings: HostSettings, repository: Repository, task: _Task) -> Iterator[Directive]:
    reads_all = "CAP_DAC_READ_SEARCH"
    yield Directive("PrivateUsers", "no", "files of every user are read")
    yield Directive("ProtectHome", "read-only", "a declared path may lie in a home")
    yield Directive("ReadWritePaths", f"{STATE} {CACHE}", "records, staging and restic's index")
    if repository.path is not None:
        # The repository's own folder may not be there yet, and a unit cannot start without it.
        place = mount_of(settings, repository) or repository.path
        yield Directive("ReadWritePaths", place, "the repository lies there")
    if task.restores:
        capabilities = f"{reads_all} CAP_CHOWN CAP_DAC_OVERRIDE CAP_FOWNER CAP_FSETID"
        owners = "restored files get their owners"
        yield Directive("CapabilityBoundingSet", capabilities, owners)
        yield Directive("SystemCallFilter", "@system-service", owners)
        yield Directive("SystemCallFilter", "~@resources @keyring", "all but what owners need")
        yield Directive("RestrictSUIDSGID", "no", "restored files get their modes")
    else:
        yield Directive("CapabilityBoundingSet", reads_all, "files of every user")
    if peers(repository, settings.base.hosts) is None:
        yield Directive("IPAddressDeny", "", "only DNS knows where the repository is")


def _credentials(repository: Repository) -> tuple[Credential, ...]:
    def where(read: Callable[[str], Secret]) -> str:
        password = read(repository.user_password) if repository.user_password else None
        return f"{location(repository, password).get_secret_value()}\n"

    def password(read: Callable[[str], Secret]) -> str:
        return f"{read(repository.password).get_secret_value()}\n"

    stem = f"backup-{repository.name}"
    return tuple(
        Credential(f"{stem}-{name}", f"{CREDENTIALS}/{stem}-{name}", text)
        for name, text in (("location", where), ("password", password))
    )


def _tasks(backup: Backup) -> list[_Task]:
    takes, checks, restores = STEMS
    return [
        _Task(takes, "backup", backup.schedule),
        _Task(checks, "check", FRESHNESS_SCHEDULE),
        _Task(restores, "restore-check", backup.restore_check_schedule, True),
    ]


def job_text(settings: HostSettings, repository: Repository) -> str:
    """The text of the job file of ``repository``."""
    return json.dumps(job(settings, repository), indent=1) + "\n"


def unproved(record: Mapping[str, Any], paths: Sequence[str]) -> bool:
    """Whether a repository still needs its first snapshot of ``paths``, or a restore that worked.

    After a rebuild the snapshot of the old machine counts: see `first` in the program.
    """
    taken = record.get("backup")
    if not taken or not record.get("restore_check", {}).get("ok"):
        return True
    return "adopted" not in taken and taken["paths"] != list(paths)
