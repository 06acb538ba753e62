"""The services whose data can leave each host, and their refused attempts.

It shows each service's tier, the addresses that it may call, and its refused calls, and the
programs that forward data for any user. It needs no knowledge of firewalls and changes nothing.
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
"""The meaning of each tier, short enough for a column."""


@dataclass(frozen=True)
class Row:
    """The row of one service."""

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
    if service.in_container:
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
    attempts = f"{refused} packets since the rules were loaded"
    if calls:
        last = calls[-1]
        port = f" port {last.port}" if last.port else ""
        attempts += f"; last {last.protocol} to {last.address}{port}, {last.at}"
    return attempts


def rows(settings: HostSettings, seen: Attempts) -> list[Row]:
    """Every service and every network of containers of a host, T1 first."""
    isolated = without_network(settings)
    held = {wall.name for wall in every_wall(settings)} if seen.enforced else set()
    found = [
        (
            service.tier,
            service.name,
            _may_call(service, settings, held, isolated),
            service.network or service.name,
        )
        for service in declared_services(settings)
    ]
    found += [
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
        for tier, name, may_call, wall in sorted(found, key=lambda each: each[0])
    ]


def _seen_by(path: str, settings: HostSettings) -> str:
    """The units of T1 that see a socket that any user may open."""
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
    """The sockets of a host that any user may open; their programs could forward data."""
    found = Table(
        title=f"{host}: sockets that any user may open",
        caption="Only units cannot see them, so start no other program as a T1 user.",
        title_justify="left",
        caption_justify="left",
    )
    for name in ("program", "runs as", "socket", "seen by T1's units"):
        found.add_column(name, overflow="fold")
    for each in sorted(seen.sockets, key=lambda each: (each.program, each.path)):
        found.add_row(each.program, each.runs_as, each.path, _seen_by(each.path, settings))
    return found


def table(host: str, settings: HostSettings, seen: Attempts) -> Table:
    """The table of a host's services."""
    ours = "" if seen.enforced else ": the kernel has no rules, deploy first"
    found = Table(title=f"{host}{ours}", title_justify="left")
    for name in ("service", "tier", "may call", "was refused a call to"):
        found.add_column(name, overflow="fold")
    for row in rows(settings, seen):
        found.add_row(row.service, row.tier, row.may_call, row.tried)
    return found
