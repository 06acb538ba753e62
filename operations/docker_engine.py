"""The container engine's configuration: ours merged into the user's, never over it."""

from __future__ import annotations

import shlex
from collections.abc import Generator
from typing import Any

from pyinfra import host
from pyinfra.api import FunctionCommand, StringCommand, operation

from facts.docker import DockerEngine, DockerState
from holdfast import docker_networks
from holdfast.docker import DAEMON_JSON, LINKS_SCRIPT, enforced, major_version, merged
from holdfast.settings import Docker, DockerNetwork
from operations.refusal import stop


def rewritten(state: DockerState, keys: dict[str, Any]) -> StringCommand | None:
    """The command that merges ``keys`` into daemon.json; None where they are there.

    The engine itself judges the new file before it takes its name.

    Raises:
        ValueError: the present file cannot be merged.
    """
    content = merged(state.daemon_json, keys)
    if content is None:
        return None
    new = f"{DAEMON_JSON}.holdfast-new"
    # Docker has been able to judge a file since version 23.
    judge = f" && dockerd --validate --config-file {new}" if major_of(state) >= 23 else ""
    return StringCommand(
        f"umask 077; mkdir -p -m 755 /etc/docker && cat > {new}{judge}"
        f" && {{ [ ! -e {DAEMON_JSON} ] || chmod --reference={DAEMON_JSON} {new}; }}"
        f" && mv -fT {new} {DAEMON_JSON} || {{ rm -f {new}; exit 1; }}",
        _stdin=content,
    )


def major_of(state: DockerState) -> int:
    """The engine's major version; before it is installed, the plan assumes a recent one."""
    return major_version(state.package_version) or 29


@operation()
def configured(
    settings: Docker, links: list[str]
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Have our keys in daemon.json, no user in the docker group, and the engine's chains in place.

    The machine's own ``links``, and those that are found there, keep the routes that routers
    advertise when the engine has the host forward. One remote command when all is so. Stops, with
    nothing changed, when the present file cannot be merged.
    """
    state = host.get_fact(DockerEngine)
    try:
        command = rewritten(state, enforced(settings, major_of(state)))
    except ValueError as error:
        yield stop(f"{error}.")
        return

    if command is not None:
        yield command
    elif state.unruled:
        yield StringCommand("systemctl restart docker.service")

    if state.until_forwarding & {*state.devices, *links}:
        yield StringCommand(LINKS_SCRIPT)

    # A user who may talk to the engine is root.
    for member in state.group_members:
        yield StringCommand(f"gpasswd --delete {shlex.quote(member)} docker")


@operation()
def networked(declared: list[DockerNetwork]) -> Generator[StringCommand, None, None]:
    """Have the declared networks as they are declared, and no other of ours.

    Expects that `holdfast.docker_networks.refusals` finds nothing.
    """
    for command in docker_networks.commands(declared, host.get_fact(DockerEngine)):
        yield StringCommand(command)
