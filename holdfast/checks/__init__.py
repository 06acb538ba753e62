"""Checks across keys: settings that contradict each other or those of another host.

Every check yields findings and changes nothing. They run only after the settings were parsed.
"""

from __future__ import annotations

from itertools import combinations

from holdfast.checks import (
    backup,
    base,
    docker,
    egress,
    engines,
    firewall,
    floor,
    gpu,
    gpu_containers,
    gpu_driver,
    gpu_limits,
    gpu_modes,
    naming,
    numbers,
    paths,
    router,
    secrets,
    services,
    sources,
    ssh,
    storage,
    tailnet,
    tenants,
)
from holdfast.refusal import Refusal
from holdfast.settings import HostSettings


def check_host(host: str, hosts: dict[str, HostSettings], names: set[str]) -> list[Refusal]:
    """Errors in the settings of one of ``hosts``, except secrets; ``names`` are all hosts of the
    inventory.
    """
    settings = hosts[host]
    # Other findings about a number in the wrong unit, or about a service of no kind, would be
    # misleading.
    findings = (
        list(numbers.numbers(settings))
        or list(tenants.kinds(settings))
        or [
            *naming.duplicates(settings),
            *ssh.login(settings),
            *tailnet.control_server(settings),
            *base.authorities(settings),
            *base.time(host, hosts),
            *sources.artefacts(settings),
            *sources.mirrors(settings),
            *naming.names(host, settings),
            *naming.placeholders(settings),
            *firewall.ports(settings),
            *firewall.listens(settings),
            *firewall.openings(settings),
            *firewall.sources(settings),
            *tailnet.callers(settings),
            *tailnet.openings(settings),
            *services.services(settings),
            *services.users(settings),
            *tenants.tenants(settings),
            *docker.repository(settings),
            *egress.tiers(settings),
            *docker.networks(settings),
            *floor.floor(settings),
            *gpu.cards(settings),
            *gpu.power_supplies(settings),
            *gpu.memory(settings),
            *gpu_driver.driver(settings),
            *gpu_limits.limits(settings),
            *gpu_modes.modes(settings),
            *gpu_containers.repository(settings),
            *engines.engines(settings),
            *router.routers(settings),
            *router.clouds(settings),
            *paths.paths(settings),
            *storage.storage(host, hosts, names),
            *backup.backup(host, hosts),
        ]
    )
    return [Refusal(host, *finding) for finding in findings]


def check_secrets(host: str, settings: HostSettings) -> list[Refusal]:
    """Errors in the secrets of one host, if `.env` can be read."""
    findings = list(secrets.secrets_set(settings)) or [
        *tailnet.auth_key(settings),
        *floor.floor_key(settings),
        *engines.engine_keys(settings),
        *router.router_keys(settings),
    ]
    return [Refusal(host, *finding) for finding in findings]


def check_site(hosts: dict[str, HostSettings]) -> list[Refusal]:
    """Contradictions between hosts. The refusal names the later host of a pair."""
    return [
        *(
            Refusal(second, key, value, f"{first} has it too", "give each host its own")
            for (first, one), (second, other) in combinations(hosts.items(), 2)
            for key, value in naming.shared(first, one, second, other)
        ),
        *tailnet.policy(hosts),
    ]
