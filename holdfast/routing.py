"""The services of a router: the router itself, its queue, its clouds, and their ledger."""

from __future__ import annotations

from urllib.parse import urlsplit

from facts.places import STATE
from holdfast.service.capability import Declared
from holdfast.settings import (
    LOOPBACK_OF,
    Cloud,
    DataPath,
    HealthCheck,
    HostSettings,
    Listen,
    Peer,
    Provider,
    Router,
    Service,
    Tier,
)

LEDGER_UNIT = "holdfast-ledger.service"


LEDGER_DUMPS = "/var/backups/holdfast-ledger"


TIER_OF_PROFILE: dict[str, Tier] = {
    **{"private": "T1", "client": "T1"},
    **{"personal": "T2", "cloud": "T3"},
}


def router_service(router: Router) -> Service:
    """A router as a service."""
    name = f"router-{router.name}"
    tier = TIER_OF_PROFILE[router.profile]
    return Service(
        name=name,
        unit=f"holdfast-{name}-loopback.service",
        user=name,
        tier=tier,
        listens=[Listen(port=router.port, scope=router.scope, callers=router.callers)],
        # It calls no cloud itself, but passes requests to another process.
        peers=[] if tier == "T1" else [Peer(network="127.0.0.1/32")],
        health=HealthCheck(url=f"http://{LOOPBACK_OF[tier]}:{router.port}/health", contains="ok"),
    )


def providers(settings: HostSettings, router: Router) -> list[Provider]:
    """The declared clouds of a router, in the order in which they are tried."""
    declared = settings.clouds.providers if settings.clouds else []
    return [each for name in router.clouds for each in declared if each.name == name]


def clouds_service(settings: HostSettings, router: Router) -> Service | None:
    """The program that asks clouds for a router, as a service; None for a router without clouds."""
    if not router.clouds:
        return None
    name = f"clouds-{router.name}"
    called = [urlsplit(provider.base_url) for provider in providers(settings, router)]
    clouds = [Cloud(name=url.hostname or "", port=url.port or 443) for url in called]
    return Service(
        name=name,
        unit=f"holdfast-{name}.service",
        user=name,
        tier=TIER_OF_PROFILE[router.profile],
        clouds=list(dict.fromkeys(clouds)),
        memory_max_mib=2048,
    )


def ledger_service(settings: HostSettings) -> Service | None:
    """The ledger of spending on clouds, as a service; None if no router has clouds."""
    if not any(router.clouds for router in settings.routers):
        return None
    return Service(
        name="ledger",
        unit=LEDGER_UNIT,
        user="holdfast-ledger",
        tier="T1",
        data=[
            # A copy of changing files is no backup, so dumps are backed up.
            DataPath(path=f"{STATE}/ledger", backup="derived"),
            DataPath(path=LEDGER_DUMPS, backup="state"),
        ],
    )


def queue_service(router: Router) -> Service | None:
    """The queue behind a router, as a service; None for a router without a queue."""
    if router.queue is None:
        return None
    name = f"queue-{router.name}"
    return Service(
        name=name,
        unit=f"holdfast-{name}.service",
        user=name,
        tier="T1",
        # Prompts need no backup: a restored queue would send requests that were answered long ago.
        data=[DataPath(path=f"{STATE}/queue/{router.name}", backup="derived")],
    )


def services(settings: HostSettings) -> list[Declared]:
    """Every router, each with its queue and its clouds."""
    found = []
    for index, router in enumerate(settings.routers):
        key = f"routers[{index}]"
        found.append((key, router_service(router)))
        if queue := queue_service(router):
            found.append((f"{key}.queue", queue))
        if clouds := clouds_service(settings, router):
            found.append((f"{key}.clouds", clouds))
    return found
