"""Storage: the NAS, mounted on first use; models and checkpoints, verified on local disk."""

from pyinfra.api.deploy import deploy

from facts.places import CONFIGURATION, SYSTEM
from facts.storage import PROOFS
from holdfast import alerts
from holdfast import storage as names
from holdfast.render import render
from holdfast.settings import HostSettings, NfsMount, Storage
from operations import artefact, host_files, packages, storage, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit

CHECKSUMS = f"{CONFIGURATION}/models.sha256"

# nfs-common installs these for NFS 3. NFS 4.2 uses one TCP connection to the NAS and needs none of
# them, and rpcbind would listen on every address.
NFS3_UNITS = [
    "rpcbind.socket",
    "rpcbind.service",
    "rpc-statd.service",
    "rpc-statd-notify.service",
    "nfs-blkmap.service",
]


def _mount_files(mount: NfsMount) -> list[HostFile]:
    return [
        HostFile(
            path=f"{SYSTEM}/{names.unit_name(mount.path, kind)}",
            content=render(
                f"storage/nfs.{kind}.j2",
                mount=mount,
                what=names.what(mount),
                options=names.options(mount),
            ),
        )
        for kind in ("mount", "automount")
    ]


def _verify_files(settings: Storage) -> list[HostFile]:
    unit = f"{SYSTEM}/holdfast-models-verify"
    return [
        HostFile(path=alerts.UNIT_PATH, content=alerts.notify_unit()),
        HostFile(path=CHECKSUMS, content=names.checksums(settings)),
        HostFile(
            path=f"{unit}.service",
            content=render(
                "storage/models-verify.service.j2",
                checksums=CHECKSUMS,
                checkpoints=[
                    names.checkpoint_path(settings, checkpoint)
                    for checkpoint in settings.checkpoints
                ],
                on_failure=alerts.ON_FAILURE,
            ),
        ),
        HostFile(
            path=f"{unit}.timer",
            content=render(
                "storage/models-verify.timer.j2", schedule=settings.models_check_schedule
            ),
        ),
    ]


def _automount(mount: NfsMount) -> Unit:
    # A restart of the automount also detaches the mount, so new options apply from the next use.
    files = [f"{SYSTEM}/{names.unit_name(mount.path, kind)}" for kind in ("mount", "automount")]
    return Unit(name=names.unit_name(mount.path, "automount"), restart_after=files)


def _prepare(stored: Storage) -> None:
    nfs = ["e2fsprogs", "nfs-common"] if stored.mounts else []
    keeps_models = bool(stored.models or stored.checkpoints)
    curl = artefact.PACKAGES if keeps_models else []
    python = [packages.PYTHON] if stored.checkpoints else []
    packages.present(name="Install what storage needs", packages=[*nfs, *curl, *python])
    host_files.place(
        name="Describe mounts and model checks",
        directories=[
            host_files.CONFIGURATION,
            HostDirectory(path=stored.models_path),
            HostDirectory(path=f"{stored.models_path}/{PROOFS}"),
        ],
        files=[
            *(file for mount in stored.mounts for file in _mount_files(mount)),
            *(_verify_files(stored) if keeps_models else []),
        ],
    )
    units.settle(
        name="Arm the automounts and the model check",
        units=[
            *(Unit(name=unit, masked=True) for unit in NFS3_UNITS if stored.mounts),
            *(_automount(mount) for mount in stored.mounts),
            *([Unit(name="holdfast-models-verify.timer")] if keeps_models else []),
        ],
    )


@deploy("Storage")
def apply(settings: HostSettings) -> None:
    """Mount the NAS on demand, without delaying a boot, and copy the models to local disk."""
    stored = settings.storage
    if stored.mounts or stored.models or stored.checkpoints:
        _prepare(stored)
    storage.kept(name="Guard the mount points and keep the models", storage=stored)
