"""Docker's networks with a tier: the commands that create them, and reasons to refuse."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from facts.docker import BridgeNetwork, DockerState
from holdfast.refusal import Refusal
from holdfast.settings import DockerNetwork, HostSettings

LABEL = "holdfast"
"""The label of a network that Holdfast created, and removes once it is no longer declared."""


def networks(settings: HostSettings) -> list[DockerNetwork]:
    """The declared networks of a host; none without Docker."""
    return settings.docker.networks if settings.docker else []


def bridge(network: DockerNetwork) -> str:
    """The network's interface on the host, which the rules match.

    The firewall's rules for Docker's own bridges (``br-`` and an id) match it as well.
    """
    return f"br-{network.name}"


def is_as_declared(network: DockerNetwork, present: BridgeNetwork) -> bool:
    """Whether a network on the host is as declared; without declared subnets any IPv4 one is."""
    declared = {4: "", 6: ""} | {6 if ":" in each else 4: each for each in network.subnets}
    return (
        present.bridge == bridge(network)
        # An internal network publishes no port.
        and not present.internal
        and declared[6] == "".join(each for each in present.subnets if ":" in each)
        and declared[4] in ("", *present.subnets)
    )


def creation(network: DockerNetwork) -> str:
    """The command that creates the network."""
    return shlex.join(
        [
            *("docker", "network", "create", f"--label={LABEL}"),
            f"--opt=com.docker.network.bridge.name={bridge(network)}",
            # Since Docker 24 daemon.json sets the same for networks that others create.
            "--opt=com.docker.network.bridge.host_binding_ipv4=127.0.0.1",
            *(["--ipv6"] if any(":" in subnet for subnet in network.subnets) else []),
            *(f"--subnet={subnet}" for subnet in network.subnets),
            network.name,
        ]
    )


def stale(declared: list[DockerNetwork], state: DockerState) -> list[str]:
    """Networks to remove: ours that are not declared, and those that are not as declared."""
    wanted = {network.name: network for network in declared}
    return [
        name
        for name, present in state.networks.items()
        if (not is_as_declared(wanted[name], present) if name in wanted else present.ours)
    ]


def commands(declared: list[DockerNetwork], state: DockerState) -> Iterator[str]:
    """The commands that make a host's networks the declared ones; none if they are."""
    gone = stale(declared, state)
    for name in gone:
        yield f"docker network rm {shlex.quote(name)}"
    for network in declared:
        if network.name in gone or network.name not in state.networks:
            yield creation(network)


def refusals(host: str, settings: HostSettings, state: DockerState) -> list[Refusal]:
    """Refuse to remove a network that containers use, or to take over a foreign interface."""
    declared = networks(settings)
    wanted = {network.name for network in declared}
    found = []
    for name in stale(declared, state):
        if users := ", ".join(state.users(name)):
            is_not = "is not as declared" if name in wanted else "is no longer declared"
            wrong = f"the network on the host {is_not}, and containers use it: {users}"
            mend = "remove them, or declare it as it is"
            found.append(Refusal(host, "docker.networks", name, wrong, mend))
    ours = {present.bridge for present in state.networks.values()}
    found += [
        Refusal(
            host,
            "docker.networks",
            network.name,
            f"the host has an interface {bridge(network)} that is not a Docker network",
            "rename the network",
        )
        for network in declared
        if bridge(network) in state.links - ours
    ]
    return found
