"""Whose data can leave each host, and what tried to.

For people who read no firewall: of every service its tier, whom it may call, and what it was
refused a call to; and which programs any user may ask to call for it. Changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

from rich.table import Table

from facts.egress import Attempts
from holdfast import tailnet
from holdfast.docker_networks import networks
from holdfast.egress import LOG_SOCKETS, every_wall, has_drop_in
from holdfast.programs import without_network
from holdfast.registry import declared_services
from holdfast.sandbox import LOOPBACK, NOTIFY_SOCKET
from holdfast.settings import Cloud, DockerNetwork, HostSettings, Peer, Service, Tier

TIERS: dict[Tier, str] = {
    "T1": "T1: never leaves",
    "T2": "T2: local first",
    "T3": "T3: cloud",
    "T4": "T4: runs the host",
}
"""What a tier means, in as many words as a column takes."""


@dataclass(frozen=True)
class Row:
    """One service, for people."""

    service: str
    tier: str
    may_call: str
    tried: str


def _peer(peer: Peer) -> str:
    network = peer.network.removesuffix("/32").removesuffix("/128")
    return f"{network} port {peer.port}" if peer.port else network


def _called(peers: list[Peer], clouds: list[Cloud]) -> list[str]:
    return [*map(_peer, peers), *(f"{cloud.name} port {cloud.port}" for cloud in clouds)]


def _may_call(service: Service, settings: HostSettings, held: set[str], isolated: set[str]) -> str:
    if service.name in isolated:
        return "nothing: it has no network"
    if service.unit == "tailscaled.service" and service.name in held and settings.tailnet:
        called = ", ".join(_called([], tailnet.called(settings.tailnet)))
        return f"any address by UDP; by TCP this machine, private networks, and {called}"
    if service.network:
        return f"what containers on {service.network} may"
    if service.name in held:
        peers = [peer for peer in service.peers if peer.network not in LOOPBACK]
        called = ", ".join(_called(peers, service.clouds))
        return f"this machine, and {called}" if called else "this machine"
    if any(listen.container for listen in service.listens):
        return "any machine, through its container: no rule restricts it"
    return "any machine: no rule restricts it"


def _containers_may_call(network: DockerNetwork, held: set[str]) -> str:
    if network.name not in held:
        return "any machine: no rule restricts it"
    machine = [] if network.tier == "T1" else ["this machine"]
    return ", ".join(["each other", *machine, *_called(network.peers, network.clouds)])


def _tried(name: str, held: set[str], seen: Attempts) -> str:
    if name not in held:
        return "not watched"
    refused = seen.refused.get(name, 0)
    calls = [call for call in seen.calls if call.service == name]
    if not refused and not calls:
        return "nothing"
    told = f"{refused} packets since the rules were loaded"
    if calls:
        last = calls[-1]
        port = f" port {last.port}" if last.port else ""
        told += f"; last {last.protocol} to {last.address}{port}, {last.at}"
    return told


def rows(settings: HostSettings, seen: Attempts) -> list[Row]:
    """Every service of a host and every network of containers, those that must not leave first."""
    isolated = without_network(settings)
    held = {wall.name for wall in every_wall(settings)} if seen.enforced else set()
    told = [
        (
            service.tier,
            service.name,
            _may_call(service, settings, held, isolated),
            service.network or service.name,
        )
        for service in declared_services(settings)
    ]
    told += [
        (
            network.tier,
            f"containers on {network.name}",
            _containers_may_call(network, held),
            network.name,
        )
        for network in networks(settings)
    ]
    return [
        Row(name, TIERS[tier], may_call, _tried(wall, held, seen))
        for tier, name, may_call, wall in sorted(told, key=lambda each: each[0])
    ]


def _seen_by(path: str, settings: HostSettings) -> str:
    """Which units of T1 see a socket that any user may open."""
    if path.startswith("@"):
        return "those in this machine's network"
    if not path.startswith("/run/"):
        return "all"
    seen = [
        service.name
        for service in settings.services
        if has_drop_in(service)
        and any(
            path == shown or path.startswith(f"{shown}/")
            for shown in (NOTIFY_SOCKET, *LOG_SOCKETS, *service.run_paths)
        )
    ]
    return ", ".join(seen) or "none"


def sockets(host: str, settings: HostSettings, seen: Attempts) -> Table:
    """Where a host's programs listen for every user, who may ask them to call for it."""
    found = Table(
        title=f"{host}: sockets that any user may open",
        caption="Only units cannot see them: start no other program as a T1 user.",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("program", "runs as", "socket", "seen by T1's units"):
        found.add_column(name, overflow="fold")
    for each in sorted(seen.sockets, key=lambda each: (each.program, each.path)):
        found.add_row(each.program, each.runs_as, each.path, _seen_by(each.path, settings))
    return found


def table(host: str, settings: HostSettings, seen: Attempts) -> Table:
    """The rows of a host as a table."""
    ours = "" if seen.enforced else ": the kernel has no rules, deploy first"
    found = Table(title=f"{host}{ours}", title_justify="left")
    for name in ("service", "tier", "may call", "was refused a call to"):
        found.add_column(name, overflow="fold")
    for row in rows(settings, seen):
        found.add_row(row.service, row.tier, row.may_call, row.tried)
    return found
