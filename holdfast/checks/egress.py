"""What services may reach, held against their tiers."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.egress import RESOLVER_PORTS, is_sovereign
from holdfast.services import Service
from holdfast.settings import HostSettings


def tiers(settings: HostSettings) -> Findings:
    """Services whose declaration would carry data to where their tier says it never goes."""
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        if service.peers and any(listen.container for listen in service.listens):
            yield Finding(
                f"{key}.peers",
                [peer.network for peer in service.peers],
                "it runs in a container, which calls nobody as a user of this host: nothing would"
                " hold it to its peers",
                "remove them",
            )
        elif service.tier == "T1":
            yield from _sovereign(key, service)


def _sovereign(key: str, service: Service) -> Findings:
    for place, peer in enumerate(service.peers):
        if not is_sovereign(peer.network):
            yield Finding(
                f"{key}.peers[{place}].network",
                peer.network,
                "a T1 service reaches private networks and the tailnet, never the internet",
                "write the one machine it needs, or give the service its true tier",
            )
        elif peer.port in RESOLVER_PORTS:
            yield Finding(
                f"{key}.peers[{place}].port",
                peer.port,
                "a resolver carries what it is asked to the internet, and T1 never goes there",
                "remove it, and name its peers by address or under base.hosts",
            )
    for place, listen in enumerate(service.listens):
        where = f"{key}.listens[{place}]"
        if listen.scope == "public":
            yield Finding(
                f"{where}.scope",
                listen.scope,
                "a T1 service answers nobody on the internet",
                "write 'lan' with sources, 'tailnet' or 'loopback'",
            )
        for source in listen.sources:
            if not is_sovereign(source):
                yield Finding(
                    f"{where}.sources",
                    source,
                    "a T1 service answers private networks and the tailnet, never the internet",
                    "write the LAN's network, or give the service its true tier",
                )
