"""Cards in containers: NVIDIA's toolkit, and a current CDI specification."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast.docker import DAEMON_JSON
from holdfast.gpu import containers
from holdfast.settings import HostSettings
from operations import apt_repository, gpu_containers, packages, program, units
from operations.host_files import HostDirectory
from operations.units import Unit


@deploy("GPU containers")
def apply(settings: HostSettings) -> None:
    """Let containers use the cards. Expects a loaded driver and an installed engine."""
    if settings.gpus is None or not containers.wants_containers(settings):
        return
    mirror = settings.gpus.container_toolkit_repository
    apt_repository.repository(
        name="Know the container toolkit's repository",
        label="nvidia-container-toolkit",
        settings=mirror or containers.vendor_repository(),
    )
    packages.present(name="Install the container toolkit", packages=containers.PACKAGES)
    generates = containers.programs(settings)
    program.place(
        what="the specification of the cards to containers",
        programs=generates,
        directories=[HostDirectory(containers.SPECIFICATION_FOLDER)],
    )
    gpu_containers.engine_knows(name="Let the engine know the cards")
    units.settle(
        name="Run the engine with the cards",
        units=[
            Unit("docker.service", restart_after=[DAEMON_JSON]),
            *(Unit(unit, masked=True) for unit in containers.VENDOR_UNITS),
            *program.settled(generates),
        ],
    )
    gpu_containers.specified(name="Have the cards specified as they are")


@deploy("GPU containers, a last look")
def look(settings: HostSettings) -> None:
    """Report containers that a reload of systemd has cut off from their cards; last in a run."""
    if containers.wants_containers(settings):
        gpu_containers.still_reached(name="See that running containers reach their cards")
