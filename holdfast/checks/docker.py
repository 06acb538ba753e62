"""Docker: its repository, its networks, and the services on them."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from itertools import combinations

from holdfast.checks.finding import Finding, Findings, canonical, nearest
from holdfast.docker_networks import networks as declared_networks
from holdfast.egress import lies_within
from holdfast.registry import declared_services
from holdfast.sandbox import TAILNET
from holdfast.settings import DockerNetwork, HostSettings, Service


def repository(settings: HostSettings) -> Findings:
    """A repository that would not be used."""
    docker = settings.docker
    if docker and docker.repository and docker.source == "distribution":
        yield Finding(
            "docker.repository.url",
            docker.repository.url,
            "source 'distribution' uses no repository",
            "remove it, or write source 'vendor'",
        )


DOCKERS_OWN = ("bridge", "container", "default", "host", "none")
"""Words with another meaning for `docker run --network`."""


def networks(settings: HostSettings) -> Findings:
    """Networks that cannot be created, or whose tier could not be enforced."""
    taken = {service.name for service in declared_services(settings)}
    declared = declared_networks(settings)
    for index, network in enumerate(declared):
        key = f"docker.networks[{index}]"
        if network.name in DOCKERS_OWN:
            yield Finding(f"{key}.name", network.name, "Docker reserves this name", "rename it")
        elif network.name in taken:
            yield Finding(
                f"{key}.name",
                network.name,
                "a service has this name, so alerts could not distinguish them",
                "rename the network",
            )
        yield from _subnets(key, network, settings)
    yield from _overlaps(declared)
    yield from _resolvers(settings, declared)
    for index, service in enumerate(settings.services):
        yield from _place(f"services[{index}]", service, {each.name: each for each in declared})


_PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")
_DOCKER0 = "172.17.0.0/16"
"""Docker's default subnet for its own bridge."""
_LONGEST_PREFIX = {4: 29, 6: 120}
"""The smallest subnet with room for a gateway and some containers."""


def _neighbours(settings: HostSettings) -> Iterator[tuple[str, str]]:
    """Networks and addresses that a host must still reach, each with the reason."""
    yield _DOCKER0, "Docker's own bridge uses it"
    for network in TAILNET:
        yield network, "the tailnet uses it"
    for source in settings.ssh.lan_sources:
        yield source, "ssh.lan_sources names it as the LAN"
    for index, opening in enumerate(settings.firewall.openings):
        for source in opening.sources if not opening.public else ():
            yield source, f"firewall.openings[{index}] lets it in from outside"
    for service in settings.services:
        for listen in service.listens:
            for source in listen.sources:
                yield source, f"service {service.name} accepts it on the LAN"
    named = {"lan_address": settings.lan_address, "ssh_hostname": settings.ssh_hostname}
    named |= {f"base.hosts {name}": address for name, address in settings.base.hosts.items()}
    named |= {f"mount {mount.name}": mount.server for mount in settings.storage.mounts}
    resolvers = settings.docker.dns if settings.docker else []
    named |= {f"docker.dns[{place}]": each for place, each in enumerate(resolvers)}
    for what, address in named.items():
        yield canonical(address or ""), f"{what} is in it"


def _taken(subnet: str, settings: HostSettings) -> str | None:
    wanted = ipaddress.ip_network(subnet)
    for network, why in _neighbours(settings):
        try:
            other = ipaddress.ip_network(network)
        except ValueError:
            continue
        if other.version == wanted.version and wanted.overlaps(other):
            return why
    return None


def _subnets(key: str, network: DockerNetwork, settings: HostSettings) -> Findings:
    versions = [ipaddress.ip_network(subnet).version for subnet in network.subnets]
    for place, subnet in enumerate(network.subnets):
        if not lies_within(subnet, map(ipaddress.ip_network, _PRIVATE)):
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                "these addresses are public or reserved",
                "write a private network, such as 172.30.1.0/24 or fd00:30:1::/64",
            )
        elif ipaddress.ip_network(subnet).prefixlen > _LONGEST_PREFIX[versions[place]]:
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                "it is too small for a gateway and containers",
                f"write one of /{_LONGEST_PREFIX[versions[place]]} or wider",
            )
        elif why := _taken(subnet, settings):
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                f"{why}, and the host would send packets for it to this bridge",
                "write another private network, such as 172.30.1.0/24 or fd00:30:1::/64",
            )
        elif versions[place] in versions[:place]:
            yield Finding(
                f"{key}.subnets[{place}]",
                subnet,
                f"the network already has an IPv{versions[place]} subnet",
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
            yield Finding(key, str(other), f"{first} uses {one}", "give each network its own")


def _resolvers(settings: HostSettings, declared: list[DockerNetwork]) -> Findings:
    resolvers = settings.docker.dns if settings.docker else []
    for place, resolver in enumerate(resolvers):
        if ipaddress.ip_address(resolver).is_loopback:
            yield Finding(
                f"docker.dns[{place}]",
                resolver,
                "loopback is the container itself, not the host",
                "write a resolver that the containers can reach, such as the LAN's",
            )
    sovereign = next((each.name for each in declared if each.tier == "T1"), None)
    if sovereign and not resolvers:
        yield Finding(
            "docker.dns",
            resolvers,
            "without it Docker may ask the host's resolvers, as root, for containers on the"
            f" T1 network {sovereign}; no rule can attribute those queries",
            "write the resolvers that containers of other tiers may ask, such as the LAN's",
        )


def _place(key: str, service: Service, declared: dict[str, DockerNetwork]) -> Findings:
    if service.network is None:
        # Those that Holdfast runs are held as every service of T3 and T4 is; what such a service
        # says of its calls has a finding of its own.
        says = service.peers or service.clouds
        held = ("T1", "T3", "T4") if service.container and not says else ("T1",)
        if service.in_container and service.tier in held:
            yield Finding(
                f"{key}.tier",
                service.tier,
                "it runs in a container that is on no declared network, so no rule would"
                " restrict it",
                f"declare a {service.tier} network under docker.networks, put the container on it,"
                " and name it here as network",
            )
        return
    network = declared.get(service.network)
    if not service.in_container:
        yield Finding(
            f"{key}.network",
            service.network,
            "none of its ports is published by a container",
            "remove it, or write container=True where Docker publishes the port",
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
            "give both the same tier, or put it on another network",
        )
