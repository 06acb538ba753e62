"""Ports, addresses and openings."""

from __future__ import annotations

import ipaddress
from itertools import combinations

from holdfast import registry
from holdfast.checks.finding import Finding, Findings, nearest
from holdfast.refusal import MISSING
from holdfast.services import Listen
from holdfast.settings import HostSettings, Opening


def ports(settings: HostSettings) -> Findings:
    """Ports that two services, or a service and an opening, claim."""
    holders: dict[tuple[str, int], str] = {}
    for claim in registry.port_claims(settings):
        holder = holders.setdefault((claim.protocol, claim.port), claim.owner)
        if holder != claim.owner:
            yield Finding(
                claim.key,
                claim.port,
                f"{holder} has {claim.protocol} port {claim.port} already",
                "choose another port",
            )
    for index, opening in enumerate(settings.firewall.openings):
        holder = holders.get((opening.protocol, opening.port), "")
        if holder == "ssh":
            mend = "use ssh.lan_access and ssh.lan_sources"
        elif holder:
            mend = "remove it and set the scope where the service is declared"
        else:
            continue
        yield Finding(
            f"firewall.openings[{index}].port",
            opening.port,
            f"{holder} has this port and its own rule",
            mend,
        )


def is_whole_internet(network: str) -> bool:
    """Whether ``network`` is so wide that naming it means "anyone"."""
    parsed = ipaddress.ip_network(network)
    return not parsed.is_private and parsed.prefixlen < (8 if parsed.version == 4 else 16)


def _interface(key: str, name: str | None, settings: HostSettings) -> Findings:
    if name is not None and name not in settings.interfaces:
        yield Finding(
            key,
            name,
            "this interface is not declared under interfaces",
            nearest(name, set(settings.interfaces)),
        )


def listens(settings: HostSettings) -> Findings:
    """Listen addresses that cannot be, or do not say whom they let in."""
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


def tailnet_scope(key: str, scope: str, settings: HostSettings) -> Findings:
    """A program that is to be reached over a tailnet which the host has not joined."""
    if scope == "tailnet" and settings.tailnet is None:
        yield Finding(
            key, scope, "this host has no tailnet", "declare tailnet, or write 'loopback'"
        )


def _scope(key: str, listen: Listen, settings: HostSettings) -> Findings:
    if listen.scope == "lan":
        if listen.interface is None:
            yield Finding(
                f"{key}.interface",
                MISSING,
                "scope 'lan' must say which interface",
                f"write one of {', '.join(settings.interfaces)}",
            )
        if not listen.sources:
            yield Finding(
                f"{key}.sources",
                listen.sources,
                "scope 'lan' must say who may come",
                "write the LAN's network, such as 192.168.1.0/24",
            )
        for source in listen.sources:
            if is_whole_internet(source):
                yield Finding(
                    f"{key}.sources",
                    source,
                    "this is the whole internet",
                    "write the LAN's network, or say scope 'public'",
                )
    elif listen.interface or listen.sources:
        part = "interface" if listen.interface else "sources"
        yield Finding(
            f"{key}.{part}",
            getattr(listen, part),
            f"scope '{listen.scope}' has no use for it",
            "write scope 'lan', or remove it",
        )
    if listen.scope == "tailnet" and settings.tailnet is None:
        yield Finding(
            f"{key}.scope",
            listen.scope,
            "this host has no tailnet",
            "declare tailnet, or choose another scope",
        )


def openings(settings: HostSettings) -> Findings:
    """Openings that let in more than they say."""
    openings = settings.firewall.openings
    for index, opening in enumerate(openings):
        key = f"firewall.openings[{index}]"
        yield from _interface(f"{key}.interface", opening.interface, settings)
        wide = next(filter(is_whole_internet, opening.sources), None)
        if wide and not opening.public:
            yield Finding(
                f"{key}.sources",
                wide,
                "this is the whole internet",
                "write the networks that need it, or say public=True",
            )
        if opening.public and not wide:
            yield Finding(
                f"{key}.public",
                opening.public,
                "no source of this opening is the whole internet",
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


def _is_same_hole(one: Opening, other: Opening) -> bool:
    def place(opening: Opening) -> tuple[object, ...]:
        return opening.port, opening.protocol, opening.interface, opening.container

    return place(one) == place(other) and bool(set(one.sources) & set(other.sources))
