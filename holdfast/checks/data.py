"""Where data lies and where its copies go."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, canonical, is_loopback, nearest
from holdfast.checks.machines import Hosts, is_same, machine_of
from holdfast.fit import NotUnderstood, planner
from holdfast.refusal import MISSING
from holdfast.registry import PathClaim
from holdfast.settings import Backup, Checkpoint, HostSettings, NfsMount, Repository
from holdfast.storage import checkpoint_folder, unit_name

WHAT_FILES_DO = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What reading the description of a model raises where it holds something of another shape."""

# Nothing of ours may lie below these.
_SYSTEM_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc"),
    *("/root", "/run", "/sbin", "/sys", "/tmp", "/usr"),  # noqa: S108
)
# Below these there is room; they themselves are shared.
_SYSTEM_FOLDERS = (
    *_SYSTEM_TREES,
    *("/", "/home", "/media", "/mnt", "/opt", "/srv", "/var", "/var/lib", "/var/log"),
)
_OURS = ("/etc/holdfast", "/opt/holdfast", "/var/lib/holdfast")
_STATE = (
    *("/var/cache", "/var/log", "/var/mail", "/var/run", "/var/lock", "/var/spool", "/var/tmp"),  # noqa: S108
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/tailscale", "/var/lib/systemd"),
    *("/var/lib/apt", "/var/lib/dpkg", "/var/lib/aide", "/var/lib/postgresql", "/var/lib/nfs"),
    *("/var/lib/private", "/var/lib/ucf", "/var/lib/unattended-upgrades", "/var/lib/snapd"),
)
"""What programs of the system keep here: a mount hides it, a folder of ours gets lost in it."""


def is_below(path: str, tree: str) -> bool:
    """Whether ``path`` is ``tree`` or lies in it."""
    return path == tree or tree in map(str, PurePosixPath(path).parents)


def _is_below_any(path: str, trees: Iterable[str]) -> bool:
    return any(is_below(path, tree) for tree in trees)


_LONGEST_UNIT = 255


def _reserved(claim: PathClaim, logins: set[str]) -> str | None:
    path = claim.path
    if claim.kind != "backup" and _is_below_any(path, _STATE):
        return "programs of the system keep their state here"
    if claim.kind == "mount":
        if _is_below_any(path, _OURS):
            return "this folder is Holdfast's own"
        if path in logins:
            return "it would hide the keys of a login"
        if len(unit_name(path, "automount")) > _LONGEST_UNIT:
            return "systemd's name for this mount would be too long"
    if claim.kind == "backup":
        # To back up is not to own: /etc and /home are fair, kernel trees and everything are not.
        is_system = path == "/" or _is_below_any(path, ("/dev", "/proc", "/run", "/sys"))
    elif claim.kind == "data":
        is_system = path in _SYSTEM_FOLDERS
        if claim.key.startswith("services[") and _is_below_any(path, _OURS):
            return "this folder is Holdfast's own"
    else:
        is_system = path in _SYSTEM_FOLDERS or _is_below_any(path, _SYSTEM_TREES)
    return "this folder is the system's" if is_system else None


def _may_overlap(outer: PathClaim, inner: PathClaim) -> bool:
    if outer.kind == "mount":
        # The NAS is where data and repositories should be; a mount on a mount hides one. Models
        # on a mount have a refusal of their own.
        is_at_home = inner.kind in ("data", "repository", "backup")
        return inner.kind == "models" or (is_at_home and outer.path != inner.path)
    return outer.owner == inner.owner


def paths(settings: HostSettings) -> Findings:
    """Folders with two owners, and folders that are the system's."""
    usable = []
    users = {*settings.ssh.authorised_keys, settings.ssh_user} - {None}
    logins = {f"/home/{user}" for user in users} | {f"/home/{user}/.ssh" for user in users}
    for claim in registry.path_claims(settings):
        reserved = _reserved(claim, logins)
        if reserved:
            yield Finding(claim.key, claim.path, reserved, "choose a folder for this purpose alone")
        else:
            usable.append(claim)
    for one, other in combinations(usable, 2):
        if is_below(other.path, one.path):
            outer, inner = one, other
        elif is_below(one.path, other.path):
            outer, inner = other, one
        else:
            continue
        if not _may_overlap(outer, inner):
            yield Finding(
                other.key,
                other.path,
                f"it overlaps {one.path} of {one.owner}",
                "give each its own folder",
            )


def _mount_of(path: str, settings: HostSettings) -> NfsMount | None:
    below = (mount for mount in settings.storage.mounts if is_below(path, mount.path))
    return next(below, None)


def _is_known_server(server: str, settings: HostSettings, hosts: set[str]) -> bool:
    if "." in server or ":" in server:
        return True
    return server in settings.base.hosts or server in hosts


def storage(host: str, hosts: Hosts, names: set[str]) -> Findings:
    """Models and mounts that cannot be reached or hide each other."""
    settings = hosts[host]
    storage = settings.storage
    for index, mount in enumerate(storage.mounts):
        if machine_of(mount.server, host, hosts) == host:
            yield Finding(
                f"storage.mounts[{index}].server",
                mount.server,
                "this is the host itself",
                "write the NAS, or use the folder as it is",
            )
        elif not _is_known_server(mount.server, settings, names):
            yield Finding(
                f"storage.mounts[{index}].server",
                mount.server,
                "no host of the inventory and no name in base.hosts is called so",
                f"{nearest(mount.server, names | set(settings.base.hosts))}, or its address",
            )
    sources = [(f"models[{index}]", model.source) for index, model in enumerate(storage.models)]
    sources += [(f"checkpoints[{index}]", c.source) for index, c in enumerate(storage.checkpoints)]
    for key, source in sources:
        if source.startswith("/") and _mount_of(source, settings) is None:
            yield Finding(
                f"storage.{key}.source",
                source,
                "this path is on no declared mount",
                "write a path below one of storage.mounts, or a URL",
            )
    files: dict[str, str] = {}
    for index, model in enumerate(storage.models):
        holder = files.setdefault(model.filename, model.name)
        if holder != model.name:
            yield Finding(
                f"storage.models[{index}].filename",
                model.filename,
                f"{holder} is kept under this name",
                "give each model its own file name",
            )
    for index, checkpoint in enumerate(storage.checkpoints):
        folder = checkpoint_folder(checkpoint)
        if folder in files:
            yield Finding(
                f"storage.checkpoints[{index}].name",
                checkpoint.name,
                f"{files[folder]} is kept under the name of its folder, {folder}",
                "rename one",
            )
        yield from _description(index, checkpoint)
    mount_below = _mount_of(storage.models_path, settings)
    if mount_below and not _is_below_any(mount_below.path, _OURS):
        yield Finding(
            "storage.models_path",
            storage.models_path,
            f"this is on the mount {mount_below.name}, and models are served from local disk",
            "write a local folder",
        )


def description_problem(checkpoint: Checkpoint) -> str | None:
    """Why a checkpoint's description cannot be read; None where it can."""
    try:
        folder = Path(checkpoint.description).expanduser()
        if not folder.is_dir():
            return "this is no folder" if folder.exists() else "there is no such folder here"
        planner.load(folder)
    except (NotUnderstood, OSError, RuntimeError) as error:
        return str(error)
    except WHAT_FILES_DO as error:
        return f"it is not the description of a model ({type(error).__name__}: {error})"
    return None


def _description(index: int, checkpoint: Checkpoint) -> Findings:
    if wrong := description_problem(checkpoint):
        mend = "write the path of a folder with config.json and model.safetensors.index.json"
        yield Finding(
            f"storage.checkpoints[{index}].description", checkpoint.description, wrong, mend
        )
        return
    held = planner.load(Path(checkpoint.description).expanduser()).weights.total_bytes
    if held > 1.05 * 2**20 * checkpoint.size_mib:
        yield Finding(
            f"storage.checkpoints[{index}].size_mib",
            checkpoint.size_mib,
            f"its description tells of {math.ceil(held / 2**20)} MiB of weights alone",
            "write the size of all its files, which `du -sm` prints",
        )


def _place(repository: Repository, host: str, hosts: Hosts) -> str:
    if repository.url:
        return machine_of(urlsplit(repository.url).hostname or "", host, hosts)
    mount = _mount_of(repository.path or "/", hosts[host])
    return machine_of(mount.server, host, hosts) if mount else host


def _places(backup: Backup, host: str, hosts: Hosts) -> list[str]:
    """The machines that hold a copy, each once."""
    found: list[str] = []
    for repository in backup.repositories:
        place = _place(repository, host, hosts)
        if not any(is_same(place, other) for other in found):
            found.append(place)
    return sorted("this host" if place == host else place for place in found)


def backup(host: str, hosts: Hosts) -> Findings:
    """Backups that would not survive what they are for."""
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
            "all copies are in one place",
            "add a repository elsewhere, or say why not in single_place_waiver",
        )
    kept = [data for service in registry.declared_services(settings) for data in service.data]
    if all(data.backup == "derived" for data in [*kept, *backup.paths]):
        yield Finding(
            "backup.paths", [], "there is nothing to save", "name a path, or remove backup"
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
            "the password would cross the network in the clear",
            "write its https URL",
        )


def _path_repository(key: str, repository: Repository, settings: HostSettings) -> Findings:
    if repository.append_only:
        yield Finding(
            f"{key}.append_only",
            repository.append_only,
            "nothing stops this host from deleting files below a path",
            "use kind 'rest' for it, or remove it",
        )
    mount = _mount_of(repository.path, settings) if repository.path else None
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
            "this looks like a mount and none is declared there",
            "declare it under storage.mounts, or write a local folder",
        )
