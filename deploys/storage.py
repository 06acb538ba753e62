"""Storage: the NAS, mounted on first use; models and checkpoints, verified on local disk."""

from pyinfra.api.deploy import deploy

from facts.places import SYSTEM
from facts.storage import PROOFS
from holdfast import storage as names
from holdfast.render import render
from holdfast.settings import HostSettings, NfsMount
from operations import artefact, packages, program, storage, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit

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


def _automount(mount: NfsMount) -> Unit:
    # A restart of the automount also detaches the mount, so new options apply from the next use.
    files = [f"{SYSTEM}/{names.unit_name(mount.path, kind)}" for kind in ("mount", "automount")]
    return Unit(name=names.unit_name(mount.path, "automount"), restart_after=files)


def _prepare(settings: HostSettings) -> None:
    stored, checks = settings.storage, names.programs(settings)
    nfs = ["e2fsprogs", "nfs-common"] if stored.mounts else []
    curl = artefact.PACKAGES if checks else []
    python = [packages.PYTHON] if stored.checkpoints else []
    packages.present(name="Install what storage needs", packages=[*nfs, *curl, *python])
    program.place(
        what="the mounts and the models' check",
        programs=checks,
        directories=[
            HostDirectory(path=stored.models_path),
            HostDirectory(path=f"{stored.models_path}/{PROOFS}"),
        ],
        files=[file for mount in stored.mounts for file in _mount_files(mount)],
    )
    units.settle(
        name="Arm the automounts and the model check",
        units=[
            *(Unit(name=unit, masked=True) for unit in NFS3_UNITS if stored.mounts),
            *(_automount(mount) for mount in stored.mounts),
            *program.settled(checks),
        ],
    )


@deploy("Storage")
def apply(settings: HostSettings) -> None:
    """Mount the NAS on demand, without delaying a boot, and copy the models to local disk."""
    stored = settings.storage
    if stored.mounts or stored.models or stored.checkpoints:
        _prepare(settings)
    storage.kept(name="Guard the mount points and keep the models", storage=stored)
