"""Backups that would be lost together with the host."""

from __future__ import annotations

from urllib.parse import urlsplit

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, canonical, is_loopback
from holdfast.checks.machines import Hosts, is_same, machine_of
from holdfast.checks.storage import mount_of
from holdfast.refusal import MISSING
from holdfast.settings import Backup, HostSettings, Repository
from holdfast.types import longest_pause_hours


def _place(repository: Repository, host: str, hosts: Hosts) -> str:
    if repository.url:
        return machine_of(urlsplit(repository.url).hostname or "", host, hosts)
    mount = mount_of(repository.path or "/", hosts[host])
    return machine_of(mount.server, host, hosts) if mount else host


def _places(backup: Backup, host: str, hosts: Hosts) -> list[str]:
    """The machines with a copy, each once."""
    found: list[str] = []
    for repository in backup.repositories:
        place = _place(repository, host, hosts)
        if not any(is_same(place, other) for other in found):
            found.append(place)
    return sorted("this host" if place == host else place for place in found)


def backup(host: str, hosts: Hosts) -> Findings:
    """Backups that would be lost together with the host."""
    settings = hosts[host]
    backup = settings.backup
    if backup is None:
        return
    for index, repository in enumerate(backup.repositories):
        yield from _repository(f"backup.repositories[{index}]", repository, settings)
    yield from _twice(backup)
    places = _places(backup, host, hosts)
    if len(places) < 2 and backup.single_place_waiver is None:
        yield Finding(
            "backup.repositories",
            ", ".join(places),
            "all copies are on one machine",
            "add a repository elsewhere, or say why not in single_place_waiver",
        )
    yield from _ages(backup)
    kept = [data for service in registry.declared_services(settings) for data in service.data]
    if all(data.backup == "derived" for data in [*kept, *backup.paths]):
        yield Finding(
            "backup.paths", [], "there is nothing to save", "name a path, or remove backup"
        )


def _ages(backup: Backup) -> Findings:
    for key, field, unit_hours in (
        ("schedule", "max_age_hours", 1),
        ("restore_check_schedule", "max_restore_age_days", 24),
    ):
        age: int = getattr(backup, field)
        pause = longest_pause_hours(getattr(backup, key))
        if pause > age * unit_hours:
            yield Finding(
                f"backup.{field}",
                age,
                f"{key} has a gap of {pause:g} hours, so a normal gap would raise an alert",
                "write more, or a more frequent schedule",
            )


def _twice(backup: Backup) -> Findings:
    holders: dict[str, str] = {}
    for index, repository in enumerate(backup.repositories):
        if not repository.url:
            continue
        parts = urlsplit(repository.url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        spelt = f"{canonical(parts.hostname or '')}:{port}{parts.path.rstrip('/')}"
        holder = holders.setdefault(spelt, repository.name)
        if holder != repository.name:
            yield Finding(
                f"backup.repositories[{index}].url",
                repository.url,
                f"{holder} is the same repository",
                "give each its own",
            )


def _repository(key: str, repository: Repository, settings: HostSettings) -> Findings:
    wanted, other = ("path", "url") if repository.kind == "path" else ("url", "path")
    if getattr(repository, wanted) is None:
        yield Finding(
            f"{key}.{wanted}",
            MISSING,
            f"kind '{repository.kind}' needs it",
            f"write the {wanted} of the repository",
        )
    if getattr(repository, other) is not None:
        yield Finding(
            f"{key}.{other}",
            getattr(repository, other),
            f"kind '{repository.kind}' has no {other}",
            "remove it, or change the kind",
        )
    if (repository.user is None) != (repository.user_password is None):
        missing = "user" if repository.user is None else "user_password"
        yield Finding(
            f"{key}.{missing}",
            MISSING,
            "user and user_password only work together",
            "write both, or neither",
        )
    if repository.kind == "path":
        yield from _path_repository(key, repository, settings)
        return
    url = repository.url or ""
    if repository.user_password and url.startswith("http://") and not is_loopback(url):
        yield Finding(
            f"{key}.url",
            repository.url,
            "the password would cross the network unencrypted",
            "write its https URL",
        )


def _path_repository(key: str, repository: Repository, settings: HostSettings) -> Findings:
    if repository.append_only:
        yield Finding(
            f"{key}.append_only",
            repository.append_only,
            "this host can delete files below a path",
            "use kind 'rest' for it, or remove it",
        )
    mount = mount_of(repository.path, settings) if repository.path else None
    if mount and mount.read_only:
        yield Finding(
            f"{key}.path",
            repository.path,
            f"the mount {mount.name} is read-only",
            "choose another mount, or make it writable",
        )
    if mount is None and (repository.path or "").startswith("/mnt/"):
        yield Finding(
            f"{key}.path",
            repository.path,
            "this looks like a mount, but no mount is declared there",
            "declare it under storage.mounts, or write a local folder",
        )
