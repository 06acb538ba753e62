"""The container engine's configuration: our keys, merged into the user's file."""

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
    """The command that merges ``keys`` into daemon.json; None if they are there. The engine itself
    validates the new file before it gets its name.

    Raises:
        ValueError: the present file cannot be merged.
    """
    content = merged(state.daemon_json, keys)
    if content is None:
        return None
    new = f"{DAEMON_JSON}.holdfast-new"
    # Docker can validate a file since version 23.
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
    """Ensure our keys in daemon.json, an empty docker group, and the engine's chains. The machine's
    own ``links``, and those that are found there, keep the advertised routes when the engine turns
    forwarding on. One remote command if nothing changes. Stops without a change if the present file
    cannot be merged.

    For example::

        docker_engine.configured(
            name="Merge the engine's configuration", settings=settings.docker, links=["enp5s0"]
        )
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

    # Access to the engine is access as root.
    for member in state.group_members:
        yield StringCommand(f"gpasswd --delete {shlex.quote(member)} docker")


@operation()
def networked(declared: list[DockerNetwork]) -> Generator[StringCommand, None, None]:
    """Create the declared networks as declared, and remove other networks of ours.

    Expects that `holdfast.docker_networks.refusals` finds nothing.

    For example::

        docker_engine.networked(name="Have the declared networks", declared=networks(settings))
    """
    for command in docker_networks.commands(declared, host.get_fact(DockerEngine)):
        yield StringCommand(command)
