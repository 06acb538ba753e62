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
from holdfast.checks.finding import Finding, Findings
from holdfast.grammar import walk
from holdfast.refusal import Refusal
from holdfast.settings import HostSettings


def check_host(host: str, settings: HostSettings, hosts: set[str]) -> list[Refusal]:
    """What is wrong with one host, its secrets aside; ``hosts`` are all names of the inventory."""
    findings = [
        *duplicates(settings),
        *access.login(settings),
        *access.tailnet(settings),
        *access.trust(settings),
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
        *data.storage(settings, hosts),
        *data.backup(settings),
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
            for key, value in _shared(one, other)
        ),
        *tailnet.policy(hosts),
    ]


def _tailnet_name(settings: HostSettings) -> str | None:
    tailnet = settings.tailnet
    return (tailnet.hostname or settings.hostname) if tailnet else None


def _shared(one: HostSettings, other: HostSettings) -> Iterator[tuple[str, str]]:
    """Keys, with values, in which two hosts must differ and do not."""
    if one.hostname == other.hostname:
        yield "hostname", other.hostname
    elif (name := _tailnet_name(other)) and name == _tailnet_name(one):
        yield "tailnet.hostname", name
    # Behind one address, different ports may lead to different machines.
    if (one.ssh_port or 22) == (other.ssh_port or 22):
        if other.lan_address and other.lan_address == one.lan_address:
            yield "lan_address", other.lan_address
        if other.ssh_hostname and other.ssh_hostname == one.ssh_hostname:
            yield "ssh_hostname", other.ssh_hostname


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
