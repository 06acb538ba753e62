"""The container engine, guarded by the firewall from its first start on."""

from __future__ import annotations

import shlex

from pyinfra import host
from pyinfra.api.deploy import deploy

from facts.docker import DockerEngine
from holdfast import docker, docker_networks
from holdfast.firewall import DOCKER_USER_SCRIPT
from holdfast.refusal import Refused
from holdfast.render import render
from holdfast.settings import HostSettings
from operations import apt_repository, docker_engine, host_files, packages, units
from operations.host_files import HostDirectory, HostFile
from operations.units import Unit


@deploy("Docker")
def apply(settings: HostSettings) -> None:
    """Install the engine with our configuration, and create the declared networks.

    Raises:
        Refused: a network would have to go that containers use, or daemon.json on the host cannot
            be merged with ours, or how the engine is started there; nothing was changed on any
            host.
    """
    engine = settings.docker
    if engine is None:
        return
    state = host.get_fact(DockerEngine)
    if refusals := [
        *docker.refusals(host.name, state.daemon_json, state.started_with),
        *docker_networks.refusals(host.name, settings, state),
    ]:
        raise Refused(refusals)
    if engine.source == "vendor":
        apt_repository.repository(
            name="Know Docker's repository",
            label="docker",
            settings=engine.repository or docker.vendor_repository(settings.distribution),
        )
    links = sorted(settings.interfaces)
    # Before the package, which starts the engine at once.
    host_files.place(
        name="Tie the engine to the firewall, and the host's links to their routes",
        directories=[HostDirectory(docker.DROP_IN.rpartition("/")[0])],
        files=[
            HostFile(
                docker.LINKS_SCRIPT,
                render("docker/docker-links.j2", named=shlex.quote(f" {' '.join(links)} ")),
                mode="755",
                validate="sh -n {}",
            ),
            HostFile(
                docker.DROP_IN,
                render(
                    "docker/docker.service.conf.j2",
                    docker_user=DOCKER_USER_SCRIPT,
                    links=docker.LINKS_SCRIPT,
                ),
            ),
        ],
    )
    packages.present(
        name="Install the engine",
        packages=docker.packages(engine, settings.distribution),
    )
    docker_engine.configured(
        name="Merge the engine's configuration",
        settings=engine,
        links=links,
    )
    units.settle(
        name="Run the engine with its configuration",
        units=[Unit("docker.service", restart_after=[docker.DAEMON_JSON])],
    )
    # After the engine has its resolvers for containers.
    docker_engine.networked(name="Have the declared networks", declared=engine.networks)
