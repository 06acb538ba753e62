"""Docker's networks, and what is said to be on them."""

from __future__ import annotations

import ipaddress
from itertools import combinations

from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.networks import networks as declared_networks
from holdfast.registry import declared_services
from holdfast.services import Service
from holdfast.settings import DockerNetwork, HostSettings

DOCKERS_OWN = ("bridge", "container", "default", "host", "none")
"""Words that `docker run --network` reads otherwise."""


def networks(settings: HostSettings) -> Findings:
    """Networks that cannot be made, or would not hold what is on them."""
    taken = {service.name for service in declared_services(settings)}
    declared = declared_networks(settings)
    for index, network in enumerate(declared):
        key = f"docker.networks[{index}]"
        if network.name in DOCKERS_OWN:
            yield Finding(
                f"{key}.name", network.name, "Docker means another thing by it", "rename it"
            )
        elif network.name in taken:
            yield Finding(
                f"{key}.name",
                network.name,
                "a service has this name, and alerts could not tell them apart",
                "rename the network",
            )
        yield from _subnets(key, network)
    yield from _overlaps(declared)
    yield from _resolvers(settings, declared)
    for index, service in enumerate(settings.services):
        yield from _place(f"services[{index}]", service, {each.name: each for each in declared})


def _subnets(key: str, network: DockerNetwork) -> Findings:
    versions = [ipaddress.ip_network(subnet).version for subnet in network.subnets]
    for place, subnet in enumerate(network.subnets):
        if not ipaddress.ip_network(subnet).is_private:
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                "these addresses are others' on the internet",
                "write a private network, such as 172.30.1.0/24 or fd00:30:1::/64",
            )
        elif versions[place] in versions[:place]:
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                f"it has one of IPv{versions[place]} already",
                "remove one",
            )


def _overlaps(declared: list[DockerNetwork]) -> Findings:
    numbered = [
        (f"docker.networks[{index}].subnets[{place}]", network.name, ipaddress.ip_network(subnet))
        for index, network in enumerate(declared)
        for place, subnet in enumerate(network.subnets)
    ]
    for (_, first, one), (key, second, other) in combinations(numbered, 2):
        if first != second and one.version == other.version and one.overlaps(other):
            yield Finding(key, str(other), f"{first} has {one}", "give each network its own")


def _resolvers(settings: HostSettings, declared: list[DockerNetwork]) -> Findings:
    resolvers = settings.docker.dns if settings.docker else []
    for place, resolver in enumerate(resolvers):
        if ipaddress.ip_address(resolver).is_loopback:
            yield Finding(
                f"docker.dns[{place}]",
                resolver,
                "to a container loopback is the container",
                "write a resolver that the containers can reach, such as the LAN's",
            )
    sovereign = next((each.name for each in declared if each.tier == "T1"), None)
    if sovereign and not resolvers:
        yield Finding(
            "docker.dns",
            resolvers,
            f"without it Docker may ask the host's resolvers for containers on the T1 network"
            f" {sovereign}, as root, where no rule knows whom it asks for",
            "write the resolvers that other containers may ask, such as the LAN's",
        )


def _place(key: str, service: Service, declared: dict[str, DockerNetwork]) -> Findings:
    is_container = any(listen.container for listen in service.listens)
    if service.network is None:
        if is_container and service.tier == "T1":
            yield Finding(
                f"{key}.tier",
                service.tier,
                "it runs in a container on no declared network: nothing would hold it",
                "declare a T1 network under docker.networks, put the container on it, and name it"
                " here as network",
            )
        return
    network = declared.get(service.network)
    if not is_container:
        yield Finding(
            f"{key}.network",
            service.network,
            "none of its ports is a container's",
            "remove it, or say container=True where Docker publishes the port",
        )
    elif network is None:
        yield Finding(
            f"{key}.network",
            service.network,
            "docker.networks declares no such network",
            nearest(service.network, set(declared)),
        )
    elif network.tier != service.tier:
        yield Finding(
            f"{key}.tier",
            service.tier,
            f"its network {network.name} is {network.tier}",
            "give both one tier, or put it on another network",
        )
