"""One registry each for services, ports, users, paths, secrets and GPU memory of a host.

Everything here is derived from a host's settings; nothing is declared a second time. Capabilities
ask `declared_services`; `holdfast.site` asks the rest and refuses collisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal
from urllib.parse import urlsplit

from facts.places import STATE
from holdfast.engines.servers import served
from holdfast.grammar import names_a_secret, walk
from holdfast.settings import (
    LOOPBACK_OF,
    Checkpoint,
    Cloud,
    DataPath,
    Engine,
    Floor,
    GpuCard,
    HealthCheck,
    HostSettings,
    Listen,
    ModelFile,
    Peer,
    Provider,
    Router,
    Service,
    Tier,
)
from holdfast.storage import model_path

FLOOR_USER = "holdfast-floor"
FLOOR_STATE = f"{STATE}/floor"
LEDGER_UNIT = "holdfast-ledger.service"
LEDGER_DUMPS = "/var/backups/holdfast-ledger"
TIER_OF_PROFILE: dict[str, Tier] = {
    **{"private": "T1", "client": "T1"},
    **{"personal": "T2", "cloud": "T3"},
}


def floor_model(settings: HostSettings) -> ModelFile | None:
    """The model the floor serves, or None where there is no floor or the model is not declared."""
    wanted = settings.floor.model if settings.floor else None
    return next((model for model in settings.storage.models if model.name == wanted), None)


def floor_service(settings: HostSettings) -> Service | None:
    """The floor as a service, or None where the host has none."""
    floor: Floor | None = settings.floor
    if floor is None:
        return None
    model = floor_model(settings)
    data = [DataPath(path=FLOOR_STATE, backup="state")]
    if model is not None:
        data.append(DataPath(path=model_path(settings.storage, model), backup="derived"))
    return Service(
        name="floor",
        unit="holdfast-floor.service",
        user=FLOOR_USER,
        tier="T1",
        listens=[Listen(port=floor.port, scope=floor.scope, callers=floor.callers)],
        memory_max_mib=floor.memory_max_mib,
        data=data,
        health=HealthCheck(url=f"http://127.0.0.1:{floor.port}/health", contains="ok"),
    )


def cards(settings: HostSettings) -> dict[str, GpuCard]:
    """The declared cards of a host by name; none where it has none."""
    return {card.name: card for card in settings.gpus.cards} if settings.gpus else {}


def engines(settings: HostSettings) -> list[Engine]:
    """The declared engines of a host; none where it has none."""
    return [engine for _, _, engine in served(settings)]


def checkpoint_of(settings: HostSettings, engine: Engine) -> Checkpoint | None:
    """The checkpoint an engine serves, or None where it is not declared."""
    declared = settings.storage.checkpoints
    return next((each for each in declared if each.name == engine.checkpoint), None)


def engine_service(program: str, engine: Engine) -> Service:
    """An engine as a service; ``program`` is what serves, such as ``vllm``."""
    name = f"{program}-{engine.name}"
    return Service(
        name=name,
        unit=f"holdfast-{name}.service",
        user=name,
        # It has no network: nothing that it receives leaves the host.
        tier="T1",
        listens=[Listen(port=engine.port, scope=engine.scope, callers=engine.callers)],
        memory_max_mib=engine.memory_max_mib,
        data=[DataPath(path=f"/var/cache/holdfast-{name}", backup="derived")],
    )


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
        # It never calls a cloud itself: that is another process's, which it hands requests to.
        peers=[] if tier == "T1" else [Peer(network="127.0.0.1/32")],
        health=HealthCheck(url=f"http://{LOOPBACK_OF[tier]}:{router.port}/health", contains="ok"),
    )


def providers(settings: HostSettings, router: Router) -> list[Provider]:
    """The clouds of a router in the order in which they are tried, those that are declared."""
    declared = settings.clouds.providers if settings.clouds else []
    return [each for name in router.clouds for each in declared if each.name == name]


def clouds_service(settings: HostSettings, router: Router) -> Service | None:
    """What asks clouds for a router as a service, or None where it leads to none."""
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
    """The record of what was spent on clouds as a service, or None where nothing can be."""
    if not any(router.clouds for router in settings.routers):
        return None
    return Service(
        name="ledger",
        unit=LEDGER_UNIT,
        user="holdfast-ledger",
        tier="T1",
        data=[
            # Files that change while they are read are no backup: its dumps are.
            DataPath(path=f"{STATE}/ledger", backup="derived"),
            DataPath(path=LEDGER_DUMPS, backup="state"),
        ],
    )


def queue_service(router: Router) -> Service | None:
    """The queue behind a router as a service, or None where it has none."""
    if router.queue is None:
        return None
    name = f"queue-{router.name}"
    return Service(
        name=name,
        unit=f"holdfast-{name}.service",
        user=name,
        tier="T1",
        # Prompts are not needed twice: a restored queue would ask what was answered long ago.
        data=[DataPath(path=f"{STATE}/queue/{router.name}", backup="derived")],
    )


def ssh_service(settings: HostSettings) -> Service:
    """The SSH server; its scopes are those that hold once the deploy has finished."""
    ssh = settings.ssh
    listens = []
    if settings.tailnet is not None:
        listens = [Listen(port=ssh.port, scope="tailnet", callers=ssh.callers)]
    # The storage network has no business logging in.
    lan = [name for name, link in settings.interfaces.items() if link.role != "storage"]
    if ssh.lan_access == "keep" and ssh.lan_sources and lan:
        listens += [
            Listen(port=ssh.port, scope="lan", interface=name, sources=ssh.lan_sources)
            for name in lan
        ]
    elif ssh.lan_access == "keep":
        listens.append(Listen(port=ssh.port, scope="public"))
    return Service(name="ssh", unit="ssh.service", user="root", tier="T4", listens=listens)


def _own_services(settings: HostSettings) -> list[tuple[str, Service]]:
    """Services that the capabilities declare, each with the key that it stands for."""
    services = [("ssh", ssh_service(settings))]
    if settings.tailnet is not None:
        tailscaled = Service(
            name="tailscaled",
            unit="tailscaled.service",
            user="root",
            tier="T4",
            listens=[Listen(port=settings.tailnet.port, protocol="udp", scope="public")],
        )
        services.append(("tailnet", tailscaled))
    if settings.docker is not None:
        docker = Service(name="docker", unit="docker.service", user="root", tier="T4")
        services.append(("docker", docker))
    floor = floor_service(settings)
    if floor is not None:
        services.append(("floor", floor))
    for key, server, engine in served(settings):
        services.append((key, engine_service(server.name, engine)))
    for index, router in enumerate(settings.routers):
        services.append((f"routers[{index}]", router_service(router)))
        if queue := queue_service(router):
            services.append((f"routers[{index}].queue", queue))
        if clouds := clouds_service(settings, router):
            services.append((f"routers[{index}].clouds", clouds))
    if ledger := ledger_service(settings):
        services.append(("clouds", ledger))
    return services


def declared_services(settings: HostSettings) -> list[Service]:
    """Every long-running program Holdfast answers for on this host, the capabilities' own first."""
    return [*(service for _, service in _own_services(settings)), *settings.services]


def own_names(settings: HostSettings) -> set[str]:
    """Names of the services that the capabilities declare themselves."""
    return {service.name for _, service in _own_services(settings)}


@dataclass(frozen=True)
class PortClaim:
    """A port a service listens on, and the key that says so."""

    key: str
    owner: str
    port: int
    protocol: Literal["tcp", "udp"]


def port_claims(settings: HostSettings) -> list[PortClaim]:
    """Every port in use, in the order of `declared_services`; SSH on two interfaces is one claim.

    Scopes are not told apart: all of them hold the loopback address.
    """
    claims = [
        PortClaim(f"{key}.port", service.name, listen.port, listen.protocol)
        for key, service in _own_services(settings)
        for listen in service.listens
    ]
    claims += [
        PortClaim(
            f"services[{index}].listens[{place}].port", service.name, listen.port, listen.protocol
        )
        for index, service in enumerate(settings.services)
        for place, listen in enumerate(service.listens)
    ]
    return list(dict.fromkeys(claims))


@dataclass(frozen=True)
class TailnetClaim:
    """A port that the tailnet may reach, and the key under which its callers stand.

    No ``callers``: every member.
    """

    key: str
    owner: str
    port: int
    protocol: Literal["tcp", "udp"]
    callers: tuple[str, ...] = ()
    container: bool = False


def tailnet_claims(settings: HostSettings) -> list[TailnetClaim]:
    """What the host's tailnet may reach, SSH first; none where it has no tailnet.

    What is open to everybody is open to the tailnet, too.
    """
    if settings.tailnet is None:
        return []
    listens = [
        (key, service.name, listen)
        for key, service in _own_services(settings)
        # Its port is where the tailnet comes from.
        if service.name != "tailscaled"
        for listen in service.listens
    ]
    listens += [
        (f"services[{index}].listens[{place}]", service.name, listen)
        for index, service in enumerate(settings.services)
        for place, listen in enumerate(service.listens)
    ]
    found: dict[tuple[str, int], TailnetClaim] = {}
    for scope in ("tailnet", "public"):
        for key, owner, listen in listens:
            if listen.scope == scope:
                claim = TailnetClaim(
                    f"{key}.callers",
                    owner,
                    listen.port,
                    listen.protocol,
                    tuple(sorted(set(listen.callers))),
                    listen.container,
                )
                found.setdefault((listen.protocol, listen.port), claim)
    for index, opening in enumerate(settings.firewall.openings):
        if opening.public:
            claim = TailnetClaim(
                f"firewall.openings[{index}].port",
                opening.reason,
                opening.port,
                opening.protocol,
                container=opening.container,
            )
            found.setdefault((opening.protocol, opening.port), claim)
    return list(found.values())


@dataclass(frozen=True)
class UserClaim:
    """A system user a service runs as."""

    key: str
    owner: str
    user: str


def user_claims(settings: HostSettings) -> list[UserClaim]:
    """Service users, without the system's own daemons and containers, which start as root."""
    claims = [
        UserClaim(key, service.name, service.user)
        for key, service in _own_services(settings)
        if service.user != "root"
    ]
    return claims + [
        UserClaim(f"services[{index}].user", service.name, service.user)
        for index, service in enumerate(settings.services)
        if not (service.user == "root" and any(listen.container for listen in service.listens))
    ]


@dataclass(frozen=True)
class PathClaim:
    """A path that belongs to one owner, and what it is to that owner."""

    key: str
    owner: str
    path: str
    kind: Literal["mount", "models", "data", "repository", "backup"]


def path_claims(settings: HostSettings) -> list[PathClaim]:
    """Mount points, the models folder, services' data, backup repositories and extra paths."""
    storage = settings.storage
    claims = [
        PathClaim(f"storage.mounts[{index}].path", f"mount {mount.name}", mount.path, "mount")
        for index, mount in enumerate(storage.mounts)
    ]
    claims.append(PathClaim("storage.models_path", "models", storage.models_path, "models"))
    claims += [
        PathClaim(key, f"service {service.name}", data.path, "data")
        for key, service in _own_services(settings)
        for data in service.data
        # The floor reads its model where storage put it.
        if data.backup != "derived"
    ]
    claims += [
        PathClaim(
            f"services[{index}].data[{place}].path", f"service {service.name}", data.path, "data"
        )
        for index, service in enumerate(settings.services)
        for place, data in enumerate(service.data)
    ]
    if settings.backup:
        claims += [
            PathClaim(
                f"backup.repositories[{index}].path",
                f"repository {repository.name}",
                repository.path,
                "repository",
            )
            for index, repository in enumerate(settings.backup.repositories)
            if repository.path
        ]
        claims += [
            PathClaim(f"backup.paths[{index}].path", f"backup.paths[{index}]", data.path, "backup")
            for index, data in enumerate(settings.backup.paths)
        ]
    return claims


@dataclass(frozen=True)
class SecretClaim:
    """A secret that a key names; ``purpose`` is that key without list positions."""

    key: str
    name: str
    purpose: str


def secret_claims(settings: HostSettings) -> list[SecretClaim]:
    """Every secret this host needs."""
    return [
        SecretClaim(key, value, re.sub(r"\[\d+\]", "", key))
        for key, value, annotation in walk(settings, HostSettings)
        if isinstance(value, str) and names_a_secret(annotation)
    ]


@dataclass(frozen=True)
class GpuClaim:
    """GPU memory a service may take, MiB; of ``card``, or of whichever it finds.

    ``written`` is what the inventory says under ``key``.
    """

    key: str
    owner: str
    mib: int
    written: float
    card: str | None = None


NOWHERE: list[str | None] = [None]
"""In place of cards: whichever a service finds."""


def gpu_claims(settings: HostSettings) -> list[GpuClaim]:
    """The tenants of this host's GPUs; `holdfast.checks.gpu` compares them with the cards."""
    claims = [
        GpuClaim(f"services[{index}].gpu_mib", service.name, service.gpu_mib, service.gpu_mib, card)
        for index, service in enumerate(settings.services)
        if service.gpu_mib
        for card in service.cards or NOWHERE
    ]
    declared = cards(settings)
    for key, _, engine in served(settings):
        claims += [
            GpuClaim(
                f"{key}.utilisation",
                engine.name,
                int(engine.utilisation * declared[card].vram_mib),
                engine.utilisation,
                card,
            )
            for card in engine.cards
            if card in declared
        ]
    return claims


def gpu_claims_by_mode(settings: HostSettings) -> Iterator[tuple[str, list[GpuClaim]]]:
    """What is claimed at once: for every combination of modes, in words and as claims."""
    claims = gpu_claims(settings)
    sets = settings.gpus.card_sets if settings.gpus else []
    modal = {name for card_set in sets for mode in card_set.modes for name in mode.services}
    for chosen in product(*(card_set.modes for card_set in sets)):
        present = {name for mode in chosen for name in mode.services}
        found = [claim for claim in claims if claim.owner in present or claim.owner not in modal]
        yield "".join(f" in mode {mode.name}" for mode in chosen), found
