"""Cards in containers: the toolkit, the engine's keys, and the state of the CDI specification.

CDI tells the engine which device files and libraries a container gets with a card. It names
libraries with the driver's version, so it is valid only for that driver and those cards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from facts.gpu_containers import (
    SERVICE,
    SPECIFICATION,
    SPECIFICATION_FOLDER,
    ContainersState,
    GpuContainer,
)
from holdfast.gpu.limits import driver_access
from holdfast.sandbox import AS_ROOT, Directive
from holdfast.service import UNRATIONED, Program
from holdfast.settings import AptRepository, HostSettings, Service

PACKAGES = ["nvidia-container-toolkit"]
VENDOR_KEY_SHA256 = "c880576d6cf75a48e5027a871bac70fd0421ab07d2b55f30877b21f1c87959c9"
"""Checksum of https://nvidia.github.io/libnvidia-container/gpgkey; its fingerprint is
C95B 321B 61E8 8C18 09C4  F759 DDCA E044 F796 ECB0. Computed on 2026-11-30 from the file ``gpgkey``
of NVIDIA's own repository NVIDIA/nvidia-docker (branch gh-pages, commit 9ca6dc5e); other projects
pin the same checksum of that URL, and the key verifies NVIDIA's InRelease of the toolkit."""
VENDOR_UNITS = ["nvidia-cdi-refresh.path", "nvidia-cdi-refresh.service"]
"""The toolkit's own, since 1.18. They run after multi-user.target, when containers that start at
boot have already failed, and not at all if the module is Debian's nvidia-current-open.ko."""


def wants_containers(settings: HostSettings) -> bool:
    """Whether containers of this host may use its cards."""
    return settings.docker is not None and settings.gpus is not None and settings.gpus.containers


def vendor_repository() -> AptRepository:
    """NVIDIA's repository of the toolkit, one for all distributions."""
    return AptRepository(
        url="https://nvidia.github.io/libnvidia-container/stable/deb",
        key_url="https://nvidia.github.io/libnvidia-container/gpgkey",
        key_sha256=VENDOR_KEY_SHA256,
        # A flat repository: the suite is its folder and there are no components.
        suite="amd64/",
        components=[],
    )


def daemon_keys(major: int) -> dict[str, Any]:
    """The keys of the engine's daemon.json that give containers cards, for its ``major`` version.

    The runtime is what ``nvidia-ctk runtime configure`` writes.
    """
    keys: dict[str, Any] = {
        "runtimes": {"nvidia": {"path": "nvidia-container-runtime", "args": []}},
    }
    if major >= 25:
        # Docker 25 added CDI; later versions enable it by default.
        keys["features"] = {"cdi": True}
    return keys


def stale(state: ContainersState) -> str | None:
    """Why the specification must be regenerated; None if it is current, or this is unknown."""
    if state.uuids is None:
        return None
    if state.specified is None:
        return "there is none"
    if state.specified_driver != state.driver:
        return f"it is for driver {state.specified_driver}, but {state.driver} is loaded"
    if missing := sorted(state.uuids - state.specified):
        return f"it lacks {', '.join(missing)}"
    if gone := sorted(state.specified - state.uuids):
        return f"it names {', '.join(gone)}, which the driver does not show"
    return None


def complaint(containers: Sequence[GpuContainer]) -> str | None:
    """The sentence about running containers that have lost their cards; None if there are none."""
    lost = [container for container in containers if container.lost is not None]
    if not lost:
        return None
    named = "; ".join(f"{container.name} ({container.lost})" for container in lost)
    restart = " ".join(container.name for container in lost)
    return (
        f"These containers can no longer reach their GPUs: {named}. Run `docker restart"
        f" {restart}`; Holdfast restarts no container."
    )


def programs(settings: HostSettings) -> list[Program]:
    """What generates the specification at boot."""
    if not wants_containers(settings):
        return []
    return [
        Program(
            service=Service(name="gpu-cdi", unit=SERVICE, user="root", tier="T1"),
            description="Holdfast: what containers are given with a card (CDI)",
            kind="oneshot",
            # CUDA's device file is created when a program first needs it, but must exist to be
            # listed. On a machine without this program udev creates it.
            before=((*f"-{AS_ROOT}".split(), "/usr/bin/nvidia-modprobe", "-u", "-c=0"),),
            command=(
                *("/usr/bin/nvidia-ctk", "cdi", "generate", f"--output={SPECIFICATION}"),
                *("--device-name-strategy=index", "--device-name-strategy=uuid"),
            ),
            start_seconds=180,
            at_boot=True,
            order=(
                Directive("After", "nvidia-persistenced.service"),
                Directive(
                    *("Before", "docker.service"),
                    "Containers that start with the engine need this boot's cards and libraries.",
                ),
                UNRATIONED,
            ),
            isolated=True,
            relaxed=(
                *driver_access(),
                Directive("ReadWritePaths", SPECIFICATION_FOLDER, "what it makes lies there"),
                Directive("UMask", "0022", "each user who starts containers must read it"),
            ),
        )
    ]
