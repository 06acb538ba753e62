"""Storage: mounts, and models on them or on local disk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from holdfast.checks.finding import NO_USER, Finding, Findings, nearest
from holdfast.checks.machines import Hosts, machine_of
from holdfast.checks.paths import OURS, is_below, is_below_any
from holdfast.fit import NotUnderstood, planner
from holdfast.settings import Checkpoint, HostSettings, NfsMount
from holdfast.storage import checkpoint_folder

WHAT_FILES_DO = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""The exceptions for a model description of an unexpected shape."""


def mount_of(path: str, settings: HostSettings) -> NfsMount | None:
    """The declared mount that ``path`` is on; None if it is on local disk."""
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
                "this is neither a host of the inventory nor a name in base.hosts",
                f"{nearest(mount.server, names | set(settings.base.hosts))}, or its address",
            )
    yield from _same_exports(storage.mounts, host, hosts)
    sources = [(f"models[{index}]", model.source) for index, model in enumerate(storage.models)]
    sources += [(f"checkpoints[{index}]", c.source) for index, c in enumerate(storage.checkpoints)]
    for key, source in sources:
        if source.startswith("/") and mount_of(source, settings) is None:
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
                f"{holder} has the same file name",
                "give each model its own file name",
            )
    for index, checkpoint in enumerate(storage.checkpoints):
        folder = checkpoint_folder(checkpoint)
        if folder in files:
            yield Finding(
                f"storage.checkpoints[{index}].name",
                checkpoint.name,
                f"its folder {folder} has the same name as the file of {files[folder]}",
                "rename one",
            )
        yield from _description(index, checkpoint)
    mount_below = mount_of(storage.models_path, settings)
    if mount_below and not is_below_any(mount_below.path, OURS):
        yield Finding(
            "storage.models_path",
            storage.models_path,
            f"this is on the mount {mount_below.name}, but models must be on local disk",
            "write a local folder",
        )


def _same_exports(mounts: Sequence[NfsMount], host: str, hosts: Hosts) -> Findings:
    exports: dict[tuple[str, str], str] = {}
    for index, mount in enumerate(mounts):
        export = machine_of(mount.server, host, hosts), mount.export
        holder = exports.setdefault(export, mount.name)
        if holder != mount.name:
            yield Finding(
                f"storage.mounts[{index}].export",
                mount.export,
                f"the mount {holder} is the same export",
                "mount each export once",
            )


def described(checkpoint: Checkpoint) -> planner.Model | str:
    """The model of a checkpoint's description, or why the description cannot be read."""
    try:
        try:
            folder = Path(checkpoint.description).expanduser()
        except RuntimeError:
            return NO_USER
        if not folder.is_dir():
            return "this is not a folder" if folder.exists() else "there is no such folder here"
        return planner.load(folder)
    except (NotUnderstood, OSError, RuntimeError) as error:
        return str(error)
    except WHAT_FILES_DO as error:
        return f"it is not the description of a model ({type(error).__name__}: {error})"


def _description(index: int, checkpoint: Checkpoint) -> Findings:
    model = described(checkpoint)
    if isinstance(model, str):
        mend = "write the path of a folder with config.json and model.safetensors.index.json"
        yield Finding(
            f"storage.checkpoints[{index}].description", checkpoint.description, model, mend
        )
        return
    held = model.weights.total_bytes
    if held > 1.05 * 2**20 * checkpoint.size_mib:
        yield Finding(
            f"storage.checkpoints[{index}].size_mib",
            checkpoint.size_mib,
            f"its description lists {math.ceil(held / 2**20)} MiB of weights alone",
            "write the size of all its files, which `du -sm` prints",
        )
