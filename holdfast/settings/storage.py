"""The settings under ``storage``: mounts, and models on local disk.

For example::

    "storage": {
        "mounts": [
            {
                "name": "nas",
                "server": "nas.home.arpa",
                "export": "/volume1/holdfast",
                "path": "/mnt/nas",
            }
        ],
        "models": [
            {
                "name": "small",
                "source": "/mnt/nas/models/small.gguf",
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "size_mib": 469,
                "filename": "small.gguf",
            }
        ],
        "checkpoints": [
            {
                "name": "llama-8b",
                "source": "/mnt/nas/checkpoints/llama-8b",
                "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
                "size_mib": 15400,
                "description": "~/checkpoints/llama-8b",
            }
        ],
    }
"""

from __future__ import annotations

from pydantic import Field

from holdfast.types import (
    AbsolutePath,
    Calendar,
    ControllerPath,
    FileName,
    HostOrAddress,
    Model,
    Name,
    Sha256,
    Source,
)


class NfsMount(Model):
    """One NFS 4.2 export, mounted on first use and released when idle."""

    name: Name
    server: HostOrAddress
    export: AbsolutePath
    path: AbsolutePath
    read_only: bool = False
    timeout_seconds: int = Field(default=30, ge=5, le=300)
    """Limit of one mount attempt."""
    idle_seconds: int = Field(default=600, ge=0)
    """Time without use until it is unmounted; 0 keeps it mounted."""


class ModelFile(Model):
    """A model's weights on local disk, copied from the NAS or downloaded, verified by checksum."""

    name: Name
    source: Source
    """A URL, or a path on a declared mount."""
    sha256: Sha256
    size_mib: float = Field(gt=0, allow_inf_nan=False)
    filename: FileName


class Checkpoint(Model):
    """A model for engines: a folder on local disk, all files verified by one checksum."""

    name: Name
    source: Source
    """The folder's URL, or its path on a declared mount. It contains the files and ``SHA256SUMS``,
    the output of ``sha256sum *``."""
    sha256: Sha256
    """The checksum of ``SHA256SUMS``."""
    size_mib: float = Field(gt=0, allow_inf_nan=False)
    """All files together, MiB."""
    description: ControllerPath
    """A folder on the controller with the model's config.json and model.safetensors.index.json (or
    the weights themselves), to check before the first connection whether it fits."""


class Storage(Model):
    """NAS mounts, and models on local disk."""

    mounts: list[NfsMount] = []
    models: list[ModelFile] = []
    checkpoints: list[Checkpoint] = []
    models_path: AbsolutePath = "/var/lib/holdfast/models"
    models_check_schedule: Calendar = "Sat *-*-* 02:30:00"
    """When every model is compared with its checksum, at low priority."""
