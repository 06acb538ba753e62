"""What no single key can tell: settings that contradict each other, this host or another host.

Every check yields findings and changes nothing. They run only where the settings parsed.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations
from typing import Any

from holdfast.checks import (
    access,
    data,
    egress,
    engines,
    gpu_driver,
    gpu_limits,
    gpu_modes,
    gpus,
    network,
    networks,
    routers,
    services,
    tailnet,
)
from holdfast.checks.finding import Finding, Findings, canonical
from holdfast.grammar import walk
from holdfast.refusal import Refusal
from holdfast.settings import HostSettings


def check_host(host: str, hosts: dict[str, HostSettings], names: set[str]) -> list[Refusal]:
    """What is wrong with one of ``hosts``, its secrets aside; ``names`` are those of the whole
    inventory.
    """
    settings = hosts[host]
    findings = [
        *duplicates(settings),
        *access.login(settings),
        *access.tailnet(settings),
        *access.trust(settings),
        *access.names(host, settings),
        *access.placeholders(settings),
        *network.ports(settings),
        *network.listens(settings),
        *network.openings(settings),
        *tailnet.callers(settings),
        *tailnet.openings(settings),
        *services.services(settings),
        *services.users(settings),
        *services.docker(settings),
        *egress.tiers(settings),
        *networks.networks(settings),
        *services.floor(settings),
        *gpus.cards(settings),
        *gpus.power_supplies(settings),
        *gpus.memory(settings),
        *gpu_driver.driver(settings),
        *gpu_limits.limits(settings),
        *gpu_modes.modes(settings),
        *gpu_limits.containers(settings),
        *engines.engines(settings),
        *routers.routers(settings),
        *data.paths(settings),
        *data.storage(host, hosts, names),
        *data.backup(host, hosts),
    ]
    return [Refusal(host, *finding) for finding in findings]


def check_secrets(host: str, settings: HostSettings) -> list[Refusal]:
    """What is wrong with the secrets one host needs, where `.env` can be read."""
    findings = list(access.secrets_set(settings)) or [
        *services.floor_key(settings),
        *engines.engine_keys(settings),
        *routers.router_keys(settings),
    ]
    return [Refusal(host, *finding) for finding in findings]


def check_site(hosts: dict[str, HostSettings]) -> list[Refusal]:
    """What is wrong between hosts. The later host of a pair is the one named."""
    return [
        *(
            Refusal(second, key, value, f"{first} has it too", "give each host its own")
            for (first, one), (second, other) in combinations(hosts.items(), 2)
            for key, value in _shared(first, one, second, other)
        ),
        *tailnet.policy(hosts),
    ]


def _tailnet_name(settings: HostSettings) -> str | None:
    tailnet = settings.tailnet
    return (tailnet.hostname or settings.hostname) if tailnet else None


def _addresses(name: str, settings: HostSettings) -> dict[str, str]:
    """Where a host is reached, by the key that says so; ``name`` is the inventory's for it."""
    found = {"ssh_hostname": settings.ssh_hostname or name, "lan_address": settings.lan_address}
    return {key: canonical(address) for key, address in found.items() if address}


def _shared(
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
