"""Names and addresses: each is given once, is this host's own, and is no example's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from holdfast.checks.finding import Finding, Findings, canonical, is_loopback_name
from holdfast.grammar import names_a_machine, walk
from holdfast.settings import HostSettings


def duplicates(settings: HostSettings) -> Findings:
    """The same thing twice in one list."""
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
                    "it stands twice in this list",
                    "remove or rename one",
                )
            seen.append(identity)


def names(host: str, settings: HostSettings) -> Findings:
    """Names that would lead elsewhere than they say, and addresses no host is reached at."""
    own = {settings.hostname, host.lower()}
    for name, address in settings.base.hosts.items():
        if name in own and address != settings.lan_address:
            yield Finding(
                f"base.hosts.{name}",
                address,
                "the host itself is called so, and its programs would call another",
                "rename one",
            )
    for key, value in (
        ("lan_address", settings.lan_address),
        # An alias of your SSH configuration may be called anything.
        ("ssh_hostname", settings.ssh_hostname),
    ):
        if value and settings.ssh_port is None and is_loopback_name(value):
            yield Finding(
                key,
                value,
                "this is the machine that you are at, which would be changed instead",
                "write the host's own address, or ssh_port where a port is forwarded to it",
            )


_EXAMPLES = re.compile(r"(.*\.)?example\.(org|com|net)")


def placeholders(settings: HostSettings) -> Findings:
    """Names of the examples, at which nothing will ever answer (RFC 2606)."""
    for key, value, annotation in walk(settings, HostSettings):
        if not isinstance(value, str) or not names_a_machine(annotation):
            continue
        name = urlsplit(value).hostname if "://" in value else value.rpartition("@")[2]
        if name and _EXAMPLES.fullmatch(canonical(name)):
            yield Finding(
                key,
                value,
                "this name is an example's, and nothing is there",
                "write your own",
            )


def _tailnet_name(settings: HostSettings) -> str | None:
    tailnet = settings.tailnet
    return (tailnet.hostname or settings.hostname) if tailnet else None


def _addresses(name: str, settings: HostSettings) -> dict[str, str]:
    """Where a host is reached, by the key that says so; ``name`` is the inventory's for it."""
    found = {"ssh_hostname": settings.ssh_hostname or name, "lan_address": settings.lan_address}
    return {key: canonical(address) for key, address in found.items() if address}


def shared(
    first: str, one: HostSettings, second: str, other: HostSettings
) -> Iterator[tuple[str, str]]:
    """Keys, with values, in which two hosts must differ and do not."""
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
