"""Names and addresses: each is used once, belongs to this host, and is not an example."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from holdfast.checks.finding import Finding, Findings, canonical, is_loopback_name
from holdfast.grammar import names_a_machine, walk
from holdfast.settings import HostSettings


def duplicates(settings: HostSettings) -> Findings:
    """Duplicate entries in a list."""
    for key, value, _ in walk(settings, HostSettings):
        if not isinstance(value, list):
            continue
        seen: list[Any] = []
        for index, item in enumerate(value):
            identity = getattr(item, "name", item)
            if identity in seen:
                at = f"{key}[{index}]" + (".name" if hasattr(item, "name") else "")
                is_word = isinstance(identity, str | int)
                yield Finding(
                    at,
                    identity if is_word else "the same again",
                    "it is in this list twice",
                    "remove or rename one",
                )
            seen.append(identity)


def names(host: str, settings: HostSettings) -> Findings:
    """Names that would lead to another machine, and addresses of the controller itself."""
    own = {settings.hostname, host.lower()}
    for name, address in settings.base.hosts.items():
        if name in own and address != settings.lan_address:
            yield Finding(
                f"base.hosts.{name}",
                address,
                "this is the host's own name, and its programs would call another machine",
                "rename one",
            )
    for key, value in (
        ("lan_address", settings.lan_address),
        # An alias of your SSH configuration may have any name.
        ("ssh_hostname", settings.ssh_hostname),
    ):
        if value and settings.ssh_port is None and is_loopback_name(value):
            yield Finding(
                key,
                value,
                "this address is the controller itself, which would be changed instead",
                "write the host's own address, or ssh_port where a port is forwarded to it",
            )


_EXAMPLES = re.compile(r"(.*\.)?example\.(org|com|net)")


def placeholders(settings: HostSettings) -> Findings:
    """Example names, which never exist (RFC 2606)."""
    for key, value, annotation in walk(settings, HostSettings):
        if not isinstance(value, str) or not names_a_machine(annotation):
            continue
        name = urlsplit(value).hostname if "://" in value else value.rpartition("@")[2]
        if name and _EXAMPLES.fullmatch(canonical(name)):
            yield Finding(
                key,
                value,
                "this is an example name, which does not exist",
                "write your own",
            )


def _tailnet_name(settings: HostSettings) -> str | None:
    tailnet = settings.tailnet
    return (tailnet.hostname or settings.hostname) if tailnet else None


def _addresses(name: str, settings: HostSettings) -> dict[str, str]:
    """The addresses of a host, by key; ``name`` is its name in the inventory."""
    found = {"ssh_hostname": settings.ssh_hostname or name, "lan_address": settings.lan_address}
    return {key: canonical(address) for key, address in found.items() if address}


def shared(
    first: str, one: HostSettings, second: str, other: HostSettings
) -> Iterator[tuple[str, str]]:
    """Keys, with values, that two hosts share although they must differ."""
    if one.hostname == other.hostname:
        yield "hostname", other.hostname
    elif (name := _tailnet_name(other)) and name == _tailnet_name(one):
        yield "tailnet.hostname", name
    # Behind one address, different ports may lead to different machines.
    if (one.ssh_port or 22) == (other.ssh_port or 22):
        theirs = {*_addresses(first, one).values()}
        for key, address in _addresses(second, other).items():
            if address in theirs:
                yield key, address
                break
    uuids = {card.uuid for card in one.gpus.cards if card.uuid} if one.gpus else set()
    for index, card in enumerate(other.gpus.cards if other.gpus else []):
        if card.uuid in uuids:
            yield f"gpus.cards[{index}].uuid", card.uuid or ""
