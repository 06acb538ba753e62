"""The CDI specification for containers, and whether running containers still reach their cards."""

from __future__ import annotations

import re
from dataclasses import dataclass
from shlex import quote

from facts import sections
from facts.framed import Framed
from facts.gpu_picture import SMI

SERVICE = "holdfast-gpu-cdi.service"
SPECIFICATION_FOLDER = "/etc/cdi"
SPECIFICATION = f"{SPECIFICATION_FOLDER}/nvidia.yaml"
OVERRIDES = ["/run/cdi/nvidia.yaml", "/run/cdi/nvidia.json"]
"""Files with precedence: CDI prefers /run/cdi to /etc/cdi."""

_UUID = "GPU-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
_PROBE_SECONDS = 30


@dataclass(frozen=True)
class ContainersState:
    """The specification, and the actual cards. ``uuids`` are the driver's cards that MIG does not
    split, None if it shows none; ``specified`` the UUIDs in the specification, None if there is no
    such file; ``specified_driver`` the version of its libraries. ``overridden``: another file has
    precedence. ``unread``: the unit's file changed since systemd read it.
    """

    uuids: frozenset[str] | None = None
    driver: str | None = None
    specified: frozenset[str] | None = None
    specified_driver: str | None = None
    overridden: bool = False
    unread: bool = False


@dataclass(frozen=True)
class GpuContainer:
    """A running container with cards. ``lost`` is the error of its nvidia-smi if it lost them."""

    name: str
    lost: str | None = None


class GpuContainers(Framed[ContainersState]):
    """The CDI specification, and the cards and driver that it should match. One command."""

    def command(self, specification: str = SPECIFICATION) -> str:
        """Build the probe; ``specification`` is another path in tests only."""
        path = quote(specification)
        return sections.probe(
            {
                "cards": f"{SMI} --query-gpu=uuid,driver_version,mig.mode.current"
                " --format=csv,noheader",
                "specification": f"[ -e {path} ] && echo present"
                f" && grep -oE '{_UUID}|libcuda\\.so\\.[0-9]+\\.[0-9.]+' {path} | sort -u",
                "overrides": f"ls -d {' '.join(OVERRIDES)}",
                "unit": f"systemctl show --property=LoadState,NeedDaemonReload {SERVICE}",
            }
        )

    @staticmethod
    def default() -> ContainersState:
        """No files."""
        return ContainersState()

    def process(self, output: list[str]) -> ContainersState:
        """Parse the probe's output."""
        found = sections.answers(output)
        rows = [
            [value.strip() for value in line.split(",")]
            for line in found.get("cards", [])
            if line.startswith("GPU-")
        ]
        words = found.get("specification", [])
        versions = [word.split(".so.")[1] for word in words if word.startswith("libcuda")]
        unit = found.get("unit", [])
        # The parts of a card that MIG splits have other names.
        whole = frozenset(uuid for uuid, _, mig in rows if mig != "Enabled")
        return ContainersState(
            uuids=whole if rows else None,
            driver=rows[0][1] if rows else None,
            specified=frozenset(w for w in words if re.fullmatch(_UUID, w)) if words else None,
            specified_driver=versions[0] if versions else None,
            overridden=bool(found.get("overrides")),
            unread="NeedDaemonReload=yes" in unit or "LoadState=not-found" in unit,
        )


class GpuContainerAccess(Framed[list[GpuContainer]]):
    """The running containers with cards, and whether they reach them. One command.

    A daemon-reload can remove a running container's access to a device file, which shows when the
    container next opens the file (NVIDIA/nvidia-container-toolkit#48, #1227). So the container's
    own nvidia-smi opens the file, or its shell if it has none; a container with neither counts as
    good.
    """

    def command(self) -> str:
        """Build the probe."""
        exec_in = f'timeout --kill-after=5 {_PROBE_SECONDS} docker exec "$name"'
        about = (
            "{{.Name}} {{.HostConfig.Runtime}} {{json .HostConfig.DeviceRequests}}"
            " {{json .HostConfig.Devices}}"
        )
        return (
            "{ docker ps --quiet --no-trunc"
            f" | xargs --no-run-if-empty docker inspect --format {quote(about)}"
            " | while read -r name about; do"
            ' case $about in nvidia" "*|*\'"gpu"\'*|*nvidia.com/gpu*|*/dev/nvidia*) ;;'
            " *) continue;; esac;"
            " name=${name#/};"
            f" said=$({exec_in} nvidia-smi -L 2>&1 </dev/null); status=$?;"
            " case $status in 126|127)"
            f" said=$({exec_in} sh -c ': <>/dev/nvidiactl' 2>&1 </dev/null); status=$?;; esac;"
            ' echo "$status $name $(echo "$said" | head -n 1)"; done; } 2>/dev/null; true'
        )

    @staticmethod
    def default() -> list[GpuContainer]:
        """No container."""
        return []

    def process(self, output: list[str]) -> list[GpuContainer]:
        """Parse the probe's output: exit status, name, and the first line said."""
        containers = []
        for line in output:
            status, name, said = (line + "  ").split(" ", 2)
            well = status in ("0", "126", "127")
            said = said.strip() or f"its probe exited with status {status}"
            containers.append(GpuContainer(name, None if well else said))
        return containers
