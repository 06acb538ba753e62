"""Folders: each has one owner, and none belongs to the system."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import combinations
from pathlib import PurePosixPath

from facts.places import CONFIGURATION, PROGRAMS, STATE
from holdfast import registry
from holdfast.checks.finding import Finding, Findings
from holdfast.registry import PathClaim
from holdfast.settings import HostSettings
from holdfast.storage import unit_name

SYSTEM_TREES = (
    *("/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc"),
    *("/root", "/run", "/sbin", "/sys", "/tmp", "/usr"),  # noqa: S108
)
"""No declared folder may be below these."""
# Folders below these are allowed; they themselves are shared.
_SYSTEM_FOLDERS = (
    *SYSTEM_TREES,
    *("/", "/home", "/media", "/mnt", "/opt", "/srv", "/var", "/var/lib", "/var/log"),
)
OURS = (CONFIGURATION, PROGRAMS, STATE)
_NO_DATA = (
    *("/bin", "/boot", "/dev", "/lib", "/lib32", "/lib64", "/proc", "/run", "/sbin", "/sys"),
    *("/tmp", "/usr/bin", "/usr/lib", "/usr/sbin", "/etc/group", "/etc/gshadow"),  # noqa: S108
    *("/etc/pam.d", "/etc/passwd", "/etc/shadow", "/etc/ssh", "/etc/sudoers", "/etc/sudoers.d"),
    "/etc/systemd",
)
"""No data of a service may be below these."""
_SYSTEM_STATE = (
    *("/var/cache", "/var/log", "/var/mail", "/var/run", "/var/lock", "/var/spool", "/var/tmp"),  # noqa: S108
    *("/var/lib/docker", "/var/lib/containerd", "/var/lib/tailscale", "/var/lib/systemd"),
    *("/var/lib/apt", "/var/lib/dpkg", "/var/lib/aide", "/var/lib/postgresql", "/var/lib/nfs"),
    *("/var/lib/private", "/var/lib/ucf", "/var/lib/unattended-upgrades", "/var/lib/snapd"),
)
"""State of system programs: a mount would hide it, and a folder of ours would mix with it."""
_HIDDEN = ("/var/backups", "/snap", "/lost+found")
"""Other folders that a mount would hide."""
_KERNEL_TREES = ("/dev", "/proc", "/run", "/sys")
_MODELS = f"{STATE}/models"


def is_below(path: str, tree: str) -> bool:
    """Whether ``path`` is ``tree`` or is in it."""
    return path == tree or tree in map(str, PurePosixPath(path).parents)


def is_below_any(path: str, trees: Iterable[str]) -> bool:
    """Whether ``path`` is one of ``trees`` or is in one."""
    return any(is_below(path, tree) for tree in trees)


_LONGEST_UNIT = 255


def _reserved(claim: PathClaim, logins: set[str]) -> str | None:
    path, kind = claim.path, claim.kind
    kept = (*_SYSTEM_STATE, *_HIDDEN) if kind == "mount" else _SYSTEM_STATE
    if kind != "backup" and is_below_any(path, kept):
        return "system programs keep their state here"
    no_place_in_ours = {
        "mount": True,
        "models": not is_below(path, _MODELS),
        "data": claim.key.startswith("services["),
    }
    if no_place_in_ours.get(kind) and is_below_any(path, OURS):
        return "this folder belongs to Holdfast"
    if kind in ("mount", "data") and path in logins:
        return "this folder holds the files that a person logs in with"
    if kind == "mount" and len(unit_name(path, "automount")) > _LONGEST_UNIT:
        return "systemd's name for this mount would be too long"
    # A backed-up path has no owner: /etc and /home are allowed, kernel trees and / are not.
    trees = {"backup": _KERNEL_TREES, "data": _NO_DATA}.get(kind, SYSTEM_TREES)
    is_system = path in (("/",) if kind == "backup" else _SYSTEM_FOLDERS)
    return "this folder belongs to the system" if is_system or is_below_any(path, trees) else None


def _may_overlap(outer: PathClaim, inner: PathClaim) -> bool:
    if outer.kind == "mount":
        # Data and repositories may be on the NAS; a mount on a mount hides one. Models on a mount
        # have their own refusal.
        is_at_home = inner.kind in ("data", "repository", "backup")
        return inner.kind == "models" or (is_at_home and outer.path != inner.path)
    return outer.owner == inner.owner


def paths(settings: HostSettings) -> Findings:
    """Folders with two owners, and folders of the system."""
    usable = []
    users = {*settings.ssh.authorised_keys, settings.ssh_user} - {None}
    logins = {f"/home/{user}" for user in users} | {f"/home/{user}/.ssh" for user in users}
    for claim in registry.path_claims(settings):
        reserved = _reserved(claim, logins)
        if reserved:
            yield Finding(
                claim.key, claim.path, reserved, "choose a folder that is used for nothing else"
            )
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
                f"it overlaps {one.path}, which belongs to {one.owner}",
                "give each its own folder",
            )
