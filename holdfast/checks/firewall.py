"""The firewall: ports, their callers, and openings."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from itertools import combinations

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.grammar import walk
from holdfast.refusal import MISSING
from holdfast.settings import HostSettings, Listen, Opening


def ports(settings: HostSettings) -> Findings:
    """Ports that two services, or a service and an opening, use."""
    holders: dict[tuple[str, int], str] = {}
    for claim in registry.port_claims(settings):
        holder = holders.setdefault((claim.protocol, claim.port), claim.owner)
        if holder != claim.owner:
            yield Finding(
                claim.key,
                claim.port,
                f"{holder} already uses {claim.protocol} port {claim.port}",
                "choose another port",
            )
    for index, opening in enumerate(settings.firewall.openings):
        holder = holders.get((opening.protocol, opening.port), "")
        if holder == "ssh":
            mend = "use ssh.lan_access and ssh.lan_sources instead"
        elif holder:
            mend = "remove it and set the scope where the service is declared"
        else:
            continue
        yield Finding(
            f"firewall.openings[{index}].port",
            opening.port,
            f"{holder} uses this port and has its own rule",
            mend,
        )


_MOST_STRANGERS = {4: 2**24, 6: 2**108}
"""The most public addresses that sources may cover: an IPv4 network of /8, an IPv6 network of
/20."""


def _is_near(network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    return network.is_private or network.is_multicast


def widest(networks: Iterable[str]) -> str | None:
    """The widest of ``networks`` if all of them together are so wide that they mean "anyone"."""
    parsed = [ipaddress.ip_network(network) for network in networks]
    for version, most in _MOST_STRANGERS.items():
        public = [each for each in parsed if each.version == version and not _is_near(each)]
        together = 0
        end = -1
        for network in sorted(public, key=lambda each: int(each.network_address)):
            last = int(network.broadcast_address)
            together += max(0, last - max(end, int(network.network_address) - 1))
            end = max(end, last)
        if together > most:
            return str(min(public, key=lambda each: each.prefixlen))
    return None


_ANYONE = {
    False: "this is the whole internet",
    True: "all sources together cover the whole internet, or a large part of it",
}


def _interface(key: str, name: str | None, settings: HostSettings) -> Findings:
    if name is not None and name not in settings.interfaces:
        yield Finding(
            key,
            name,
            "this interface is not declared under interfaces",
            nearest(name, set(settings.interfaces)),
        )


def listens(settings: HostSettings) -> Findings:
    """Impossible listen addresses, and those without their callers."""
    for index, service in enumerate(settings.services):
        for place, listen in enumerate(service.listens):
            key = f"services[{index}].listens[{place}]"
            yield from _interface(f"{key}.interface", listen.interface, settings)
            yield from _scope(key, listen, settings)
            if listen.container and settings.docker is None:
                yield Finding(
                    f"{key}.container",
                    True,
                    "this host has no Docker",
                    "declare docker, or remove it",
                )


def _scope(key: str, listen: Listen, settings: HostSettings) -> Findings:
    if listen.scope == "lan":
        if listen.interface is None:
            yield Finding(
                f"{key}.interface",
                MISSING,
                "scope 'lan' needs an interface",
                f"write one of {', '.join(settings.interfaces)}",
            )
        if not listen.sources:
            yield Finding(
                f"{key}.sources",
                listen.sources,
                "scope 'lan' needs sources",
                "write the LAN's network, such as 192.168.1.0/24",
            )
        if wide := widest(listen.sources):
            yield Finding(
                f"{key}.sources",
                wide,
                _ANYONE[len(listen.sources) > 1],
                "write the LAN's network, or scope 'public'",
            )
    elif listen.interface or listen.sources:
        part = "interface" if listen.interface else "sources"
        yield Finding(
            f"{key}.{part}",
            getattr(listen, part),
            f"scope '{listen.scope}' does not use it",
            "write scope 'lan', or remove it",
        )
    if listen.scope == "tailnet" and settings.tailnet is None:
        yield Finding(
            f"{key}.scope",
            listen.scope,
            "this host has no tailnet",
            "declare tailnet, or choose another scope",
        )


def sources(settings: HostSettings) -> Findings:
    """Source networks that contain no other machine."""
    for key, value, _ in walk(settings, HostSettings):
        if not key.endswith("sources") or widest(value):
            continue
        for place, source in enumerate(value):
            network = ipaddress.ip_network(source)
            if network.is_loopback or network.is_multicast:
                wrong = "no other machine has an address in it"
                mend = "write a network such as 192.168.1.0/24"
                yield Finding(f"{key}[{place}]", source, wrong, mend)


def openings(settings: HostSettings) -> Findings:
    """Openings that accept more callers than their keys show."""
    openings = settings.firewall.openings
    for index, opening in enumerate(openings):
        key = f"firewall.openings[{index}]"
        yield from _interface(f"{key}.interface", opening.interface, settings)
        pieces = [
            source
            for other in openings[: index + 1]
            if _place(other) == _place(opening) and not other.public
            for source in other.sources
        ]
        wide = widest(opening.sources)
        if (wide or widest(pieces)) and not opening.public:
            yield Finding(
                f"{key}.sources",
                wide or widest(pieces),
                _ANYONE[len(pieces) > 1],
                "write the networks that need it, or public=True",
            )
        if opening.public and not wide:
            yield Finding(
                f"{key}.public",
                opening.public,
                "no source of this opening covers the whole internet",
                "remove it",
            )
        if opening.container and settings.docker is None:
            yield Finding(
                f"{key}.container",
                opening.container,
                "this host has no Docker",
                "declare docker, or remove it",
            )
    for (_, one), (second, other) in combinations(enumerate(openings), 2):
        if _is_same_hole(one, other) and one != other:
            yield Finding(
                f"firewall.openings[{second}].port",
                other.port,
                "an opening above has this port, interface and source",
                "keep one of them",
            )


def _place(opening: Opening) -> tuple[object, ...]:
    return opening.port, opening.protocol, opening.interface, opening.container


def _is_same_hole(one: Opening, other: Opening) -> bool:
    return _place(one) == _place(other) and bool(set(one.sources) & set(other.sources))
