"""Where data lives: names of mount units, which mount a path is on, what the checks must find."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable

from holdfast.settings import Checkpoint, Engine, HostSettings, ModelFile, NfsMount, Storage

NFS_OPTIONS = "vers=4.2,hard,_netdev,nosuid,nodev,noexec"
"""``hard``: a write waits for the NAS; ``soft`` may lose it. Data is neither program nor device."""


WRITE_SUMS = "find * -type f ! -name SHA256SUMS ! -path '*/.*' -exec sha256sum {} + > SHA256SUMS"
"""What a checkpoint's publisher types in its folder to list its files, sub-folders' too."""


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


def checkpoint_folder(checkpoint: Checkpoint) -> str:
    """The name of the folder ``checkpoint`` lies in: another one for every content, so that the one
    before stays for a way back.
    """
    return f"{checkpoint.name}-{checkpoint.sha256[:12]}"


def checkpoint_path(storage: Storage, checkpoint: Checkpoint) -> str:
    """Where ``checkpoint`` lies on local disk."""
    return f"{storage.models_path}/{checkpoint_folder(checkpoint)}"


def checksums(storage: Storage) -> str:
    """Every declared model, and the list of every checkpoint's files, in the form that
    ``sha256sum --check`` reads.
    """
    files = [(model.sha256, model_path(storage, model)) for model in storage.models]
    files += [
        (checkpoint.sha256, f"{checkpoint_path(storage, checkpoint)}/SHA256SUMS")
        for checkpoint in storage.checkpoints
    ]
    return "".join(f"{sha256}  {path}\n" for sha256, path in files)


def checkpoint_of(settings: HostSettings, engine: Engine) -> Checkpoint | None:
    """The checkpoint an engine serves, or None where it is not declared."""
    declared = settings.storage.checkpoints
    return next((each for each in declared if each.name == engine.checkpoint), None)
