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

from holdfast.capabilities import CAPABILITIES
from holdfast.engines.servers import served
from holdfast.gpu.cards import declared_cards
from holdfast.grammar import names_a_secret, walk
from holdfast.service.capability import Declared
from holdfast.settings import HostSettings, Service


def _own_services(settings: HostSettings) -> list[Declared]:
    """Services that the capabilities declare, each with the key that it stands for."""
    return [declared for each in CAPABILITIES for declared in each.services(settings)]


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
        # A tenant's follows from its name.
        UserClaim(
            f"services[{index}].{'name' if service.is_tenant else 'user'}",
            service.name,
            service.user,
        )
        for index, service in enumerate(settings.services)
        if not (service.user == "root" and service.in_container)
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
    declared = declared_cards(settings)
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
