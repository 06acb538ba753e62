"""Where data lives: names of mount units, which mount a path is on, what the checks must find."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable

from holdfast.settings import ModelFile, NfsMount, Storage

NFS_OPTIONS = "vers=4.2,hard,_netdev,nosuid,nodev,noexec"
"""``hard``: a write waits for the NAS; ``soft`` may lose it. Data is neither program nor device."""


def unit_name(path: str, suffix: str) -> str:
    """The unit that systemd gives to an absolute ``path``, as ``systemd-escape --path`` does it.

    ``suffix`` is ``mount`` or ``automount``.
    """
    trimmed = posixpath.normpath(path).strip("/")
    escaped = re.sub(
        r"[^A-Za-z0-9:_./]",
        lambda match: "".join(f"\\x{byte:02x}" for byte in match[0].encode()),
        trimmed,
    )
    if escaped.startswith("."):
        escaped = "\\x2e" + escaped[1:]
    return f"{escaped.replace('/', '-') or '-'}.{suffix}"


def what(mount: NfsMount) -> str:
    """``server:/export``; an IPv6 address in the brackets that NFS wants."""
    try:
        is_v6 = ipaddress.ip_address(mount.server.partition("%")[0]).version == 6
    except ValueError:
        is_v6 = False
    return f"[{mount.server}]:{mount.export}" if is_v6 else f"{mount.server}:{mount.export}"


def options(mount: NfsMount) -> str:
    """Mount options of ``mount``."""
    return f"{NFS_OPTIONS},{'ro' if mount.read_only else 'rw'}"


def mount_of(mounts: Iterable[NfsMount], path: str) -> NfsMount | None:
    """The declared mount that ``path`` lies on, or None where it is on local disk."""
    holding = [m for m in mounts if path == m.path or path.startswith(f"{m.path}/")]
    return max(holding, key=lambda mount: len(mount.path), default=None)


def model_path(storage: Storage, model: ModelFile) -> str:
    """Where ``model`` lies on local disk."""
    return f"{storage.models_path}/{model.filename}"


def model_url(model: ModelFile) -> str:
    """Where curl finds ``model``: its URL, or its path on a mount as a ``file://`` URL."""
    return f"file://{model.source}" if model.source.startswith("/") else model.source


def checksums(storage: Storage) -> str:
    """Every declared model in the form that ``sha256sum --check`` reads."""
    return "".join(f"{m.sha256}  {model_path(storage, m)}\n" for m in storage.models)
