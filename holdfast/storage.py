"""Names of mount units, the mount of a path, and the paths of models and checkpoints."""

from __future__ import annotations

import ipaddress
import posixpath
import re
from collections.abc import Iterable

from facts.places import CONFIGURATION
from facts.storage import CHECK_SERVICE
from holdfast.sandbox import Directive
from holdfast.service import File, Program, Timer
from holdfast.settings import (
    Checkpoint,
    Engine,
    HostSettings,
    ModelFile,
    NfsMount,
    Service,
    Storage,
)

CHECKSUMS = f"{CONFIGURATION}/models.sha256"
"""Every declared model, and the list of every checkpoint's files, with their checksums."""

NFS_OPTIONS = "vers=4.2,hard,_netdev,nosuid,nodev,noexec"
"""``hard``: a write waits for the NAS; with ``soft`` data may be lost. Files there cannot run as
programs or act as devices."""


WRITE_SUMS = "find * -type f ! -name SHA256SUMS ! -path '*/.*' -exec sha256sum {} + > SHA256SUMS"
"""The command with which a checkpoint's publisher lists the files in its folder and sub-folders."""


def unit_name(path: str, suffix: str) -> str:
    """The unit that systemd gives to an absolute ``path``, as ``systemd-escape --path`` does.

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
    """``server:/export``; NFS requires brackets around an IPv6 address."""
    try:
        is_v6 = ipaddress.ip_address(mount.server.partition("%")[0]).version == 6
    except ValueError:
        is_v6 = False
    return f"[{mount.server}]:{mount.export}" if is_v6 else f"{mount.server}:{mount.export}"


def options(mount: NfsMount) -> str:
    """The options of ``mount``."""
    return f"{NFS_OPTIONS},{'ro' if mount.read_only else 'rw'}"


def mount_of(mounts: Iterable[NfsMount], path: str) -> NfsMount | None:
    """The declared mount of ``path``; None if it is on local disk."""
    holding = [m for m in mounts if path == m.path or path.startswith(f"{m.path}/")]
    return max(holding, key=lambda mount: len(mount.path), default=None)


def model_path(storage: Storage, model: ModelFile) -> str:
    """The path of ``model`` on local disk."""
    return f"{storage.models_path}/{model.filename}"


def checkpoint_folder(checkpoint: Checkpoint) -> str:
    """The name of the folder of ``checkpoint``.

    It differs for every content, so that the previous folder stays for a rollback.
    """
    return f"{checkpoint.name}-{checkpoint.sha256[:12]}"


def checkpoint_path(storage: Storage, checkpoint: Checkpoint) -> str:
    """The path of ``checkpoint`` on local disk."""
    return f"{storage.models_path}/{checkpoint_folder(checkpoint)}"


def checksums(storage: Storage) -> str:
    """The list for ``sha256sum --check``: every model and every checkpoint's SHA256SUMS."""
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


def programs(settings: HostSettings) -> list[Program]:
    """What compares the models on local disk with their checksums."""
    stored = settings.storage
    if not (stored.models or stored.checkpoints):
        return []
    user = CHECK_SERVICE.removesuffix(".service")
    compare = ("sha256sum", "--check", "--quiet", "--strict")
    return [
        Program(
            service=Service(name="models-verify", unit=CHECK_SERVICE, user=user, tier="T1"),
            description="Holdfast: compare the models on local disk with their checksums",
            # Without a limit of time: it reads every model whole.
            kind="oneshot",
            command=(f"/usr/bin/{compare[0]}", *compare[1:], CHECKSUMS),
            then=tuple(
                (
                    *("/usr/bin/env", f"--chdir={checkpoint_path(stored, checkpoint)}"),
                    *(*compare, "SHA256SUMS"),
                )
                for checkpoint in stored.checkpoints
            ),
            files=(File(CHECKSUMS, checksums(stored)),),
            runtime="holdfast/models-verify",
            tuned=(
                Directive("DynamicUser", "yes", "Its user exists while it runs."),
                Directive("Nice", "19"),
                Directive("IOSchedulingClass", "idle"),
            ),
            isolated=True,
            timer=Timer(
                "regularly",
                (
                    Directive("OnCalendar", stored.models_check_schedule),
                    Directive("RandomizedDelaySec", "1h"),
                    Directive("Persistent", "true"),
                ),
            ),
        )
    ]
