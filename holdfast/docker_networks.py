"""Docker's networks that carry a tier: what they must be, and what is in the way."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from facts.docker import BridgeNetwork, DockerState
from holdfast.refusal import Refusal
from holdfast.settings import DockerNetwork, HostSettings

LABEL = "holdfast"
"""Marks a network as ours, to be removed when it is declared no more."""


def networks(settings: HostSettings) -> list[DockerNetwork]:
    """The declared networks of a host; none where it has no Docker."""
    return settings.docker.networks if settings.docker else []


def bridge(network: DockerNetwork) -> str:
    """Its interface on the host, by which the rules know it.

    The firewall's rules for Docker's own bridges (``br-`` and an id) hold it as well.
    """
    return f"br-{network.name}"


def is_as_declared(network: DockerNetwork, present: BridgeNetwork) -> bool:
    """Whether a network is what it must be; where it says nothing of subnets, any will do."""
    declared = {4: "", 6: ""} | {6 if ":" in each else 4: each for each in network.subnets}
    return (
        present.bridge == bridge(network)
        # One that is internal publishes no port.
        and not present.internal
        and declared[6] == "".join(each for each in present.subnets if ":" in each)
        and declared[4] in ("", *present.subnets)
    )


def creation(network: DockerNetwork) -> str:
    """The command that makes it."""
    return shlex.join(
        [
            *("docker", "network", "create", f"--label={LABEL}"),
            f"--opt=com.docker.network.bridge.name={bridge(network)}",
            # As daemon.json has it for networks that others make, since Docker 24.
            "--opt=com.docker.network.bridge.host_binding_ipv4=127.0.0.1",
            *(["--ipv6"] if any(":" in subnet for subnet in network.subnets) else []),
            *(f"--subnet={subnet}" for subnet in network.subnets),
            network.name,
        ]
    )


def stale(declared: list[DockerNetwork], state: DockerState) -> list[str]:
    """Networks that must go: ours that are not declared, and those that are not as declared."""
    wanted = {network.name: network for network in declared}
    return [
        name
        for name, present in state.networks.items()
        if (not is_as_declared(wanted[name], present) if name in wanted else present.ours)
    ]


def commands(declared: list[DockerNetwork], state: DockerState) -> Iterator[str]:
    """What makes a host's networks the declared ones; nothing when they are."""
    gone = stale(declared, state)
    for name in gone:
        yield f"docker network rm {shlex.quote(name)}"
    for network in declared:
        if network.name in gone or network.name not in state.networks:
            yield creation(network)


def refusals(host: str, settings: HostSettings, state: DockerState) -> list[Refusal]:
    """Networks that would have to go and that containers use, and bridges that are not Docker's."""
    declared = networks(settings)
    wanted = {network.name for network in declared}
    found = []
    for name in stale(declared, state):
        if users := ", ".join(state.users(name)):
            is_not = "is not as declared" if name in wanted else "is declared no more"
            wrong = f"the network on the host {is_not}, and containers use it: {users}"
            mend = "remove them, or declare it as it is"
            found.append(Refusal(host, "docker.networks", name, wrong, mend))
    ours = {present.bridge for present in state.networks.values()}
    found += [
        Refusal(
            host,
            "docker.networks",
            network.name,
            f"the host has an interface {bridge(network)} that is no network of Docker's",
            "rename the network",
        )
        for network in declared
        if bridge(network) in state.links - ours
    ]
    return found
