"""Local storage: write-protected mount points, and verified models."""

from __future__ import annotations

import shlex
from collections.abc import Generator

from pyinfra import host
from pyinfra.api import StringCommand, operation

from facts.places import SYSTEM
from facts.storage import CHECK_SERVICE, LISTING, PROOFS, StorageStates, beneath
from holdfast.host_programs import checkpoint as checkpoint_program
from holdfast.render import render
from holdfast.settings import Checkpoint, ModelFile, Storage
from holdfast.shipping import text_of
from holdfast.storage import (
    WRITE_SUMS,
    checkpoint_folder,
    checkpoint_path,
    model_path,
    mount_of,
    unit_name,
)
from operations.artefact import CURL

_SLOWEST_MIB_PER_SECOND = 1
"""A slower copy counts as stalled: a hard mount without its server never returns."""
_READABLE = "d 755 root:root,f 644 root:root"
"""Access to a checkpoint: every user may read it, only root may change it."""


def _place_script(storage: Storage, wanted: ModelFile | Checkpoint, kind: str, target: str) -> str:
    mount = mount_of(storage.mounts, wanted.source)
    is_local = wanted.source.startswith("/")
    return render(
        f"storage/place_{kind}.sh.j2",
        kind=kind,
        wanted=wanted,
        source=wanted.source.rstrip("/"),
        target=target,
        models_path=storage.models_path,
        proofs=PROOFS,
        listing=LISTING,
        write_sums=WRITE_SUMS,
        checkpoint_program=text_of(checkpoint_program),
        curl=CURL.replace("=http,", "=file,http,"),
        is_local=is_local,
        scheme="file://" if is_local else "",
        source_timeout_seconds=mount.timeout_seconds + 10 if mount else 10,
        timeout_seconds=120 + int(wanted.size_mib / _SLOWEST_MIB_PER_SECOND),
        need_bytes=int(wanted.size_mib * 2**20),
    )


@operation()
def kept(storage: Storage) -> Generator[StringCommand, None, None]:
    """Make every mount point immutable beneath its mount, and install every declared model.

    A mount that is no longer declared is unmounted and its units are removed. A model is copied or
    downloaded at low priority, resumed after an interruption, verified by its checksum, then
    renamed into place. The checksum is computed again only if the file's size or mtime changed, or
    if the regular check failed; a wrong file is then replaced. A checkpoint is a folder that
    contains only such files. A checkpoint with another checksum is in another folder, which is not
    changed. Fails with one sentence if a source cannot be read, space is short or a checksum is
    wrong.

    For example::

        storage.kept(name="Keep the models", storage=settings.storage)
    """
    state = host.get_fact(
        StorageStates,
        models_path=storage.models_path,
        filenames=[model.filename for model in storage.models],
        folders=[checkpoint_folder(checkpoint) for checkpoint in storage.checkpoints],
        mount_points=[mount.path for mount in storage.mounts],
    )
    for mount in storage.mounts:
        if mount.path not in state.guarded:
            yield StringCommand(beneath(mount.path, 'mkdir -p "$bare" && chattr +i "$bare"'))

    declared = {unit_name(mount.path, "automount") for mount in storage.mounts}
    for unit in sorted(state.mount_units - declared):
        automount = shlex.quote(unit)
        mount_unit = shlex.quote(unit.removesuffix(".automount") + ".mount")
        yield StringCommand(
            f"systemctl disable --now {automount}; systemctl stop {mount_unit};"
            f" cd {SYSTEM} && rm -f {automount} {mount_unit} && systemctl daemon-reload"
        )

    for model in storage.models:
        present = state.models.get(model.filename)
        if present is None or present.proved_sha256 != model.sha256 or state.check_failed:
            yield StringCommand(_place_script(storage, model, "model", model.filename))
        elif (present.mode, present.owner) != ("644", "root:root"):
            path = shlex.quote(model_path(storage, model))
            yield StringCommand(f"chown root:root {path} && chmod 644 {path}")
    for checkpoint in storage.checkpoints:
        name = checkpoint_folder(checkpoint)
        folder = state.checkpoints.get(name)
        if folder is None or folder.proved_sha256 != checkpoint.sha256 or state.check_failed:
            yield StringCommand(_place_script(storage, checkpoint, "checkpoint", name))
        elif folder.access != _READABLE:
            path = shlex.quote(checkpoint_path(storage, checkpoint))
            yield StringCommand(
                f"chown -R root:root {path} && find {path} -type d -exec chmod 755 {{}} +"
                f" && find {path} -type f -exec chmod 644 {{}} +"
            )
    if state.check_failed:
        yield StringCommand(f"systemctl reset-failed {CHECK_SERVICE}")
