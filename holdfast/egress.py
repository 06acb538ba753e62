"""What each service may reach: the kernel's rules and systemd's drop-ins, from declarations alone.

The kernel's rules match users. They apply to each process of a service's user, inside its unit and
outside; they do not apply to root. Packets of containers carry no user of this host, so for them
the rules match the bridge of their network.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace

from facts.egress import DROP_IN
from facts.places import SYSTEM
from holdfast import kernel_rules, tailnet
from holdfast.docker_networks import bridge, networks
from holdfast.doors import MARK
from holdfast.host_programs import egress as egress_program
from holdfast.registry import declared_services
from holdfast.render import render
from holdfast.sandbox import (
    LOADS_RULES,
    LOOPBACK,
    NOTIFY_SOCKET,
    Directive,
    allowed,
    callers,
)
from holdfast.service import EVERY_MINUTE, LOGS_NO_STARTS, UNRATIONED, File, Program
from holdfast.settings import Cloud, HostSettings, Peer, Service, Tier
from holdfast.shipping import path_of

TABLE = egress_program.TABLE
RULES = egress_program.RULES
USERS = egress_program.USERS
CLOUDS = egress_program.CLOUDS
NETWORKS = egress_program.NETWORKS
OWN_MARK = 0x5AFD
"""The mark of packets that this machine itself sends to groups on a bridge. It uses none of
Tailscale's bits."""
TAILSCALED_MARK = "meta mark & 0xff0000 == 0x80000"
"""The match, in nftables' syntax, of packets that tailscaled itself sends; it runs as root."""
PROGRAM = path_of(egress_program)
SERVICE = "holdfast-egress.service"
WATCH = "holdfast-egress-watch.service"
TIMER = "holdfast-egress-watch.timer"
RESOLVE = "holdfast-egress-resolve.service"
RESOLVE_TIMER = "holdfast-egress-resolve.timer"
REQUEST_KEYS = "/etc/request-key.d/holdfast.conf"
"""What the kernel runs when a program requests a missing key (request-key.conf(5))."""

DOORS = "our_doors"
"""The name under which refused calls through a door's socket are counted; no service may use it."""
MULTICAST = {"ip": ["224.0.0.251", "224.0.0.252"], "ip6": ["ff02::2", "ff02::fb", "ff02::1:3"]}
"""Well-known multicast groups, whose numbers carry no data: mDNS, LLMNR and the routers'."""
LOG_SOCKETS = ("/run/systemd/journal/socket", "/run/systemd/journal/dev-log")
"""The sockets of the log, which also takes the output of programs."""
RESOLVER_PORTS = (53, 853, 5353)
"""DNS, DNS over TLS, mDNS."""
TAILSCALE_SERVICES = {"ip": "100.100.100.100", "ip6": "fd7a:115c:a1e0::53"}
"""The addresses of tailscaled's resolver on every member of a tailnet; it also asks others."""
SOVEREIGN = tuple(
    ipaddress.ip_network(network)
    for network in (
        *("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10"),
        *("::1/128", "fc00::/7"),
    )
)
"""The networks that a T1 service may exchange data with: loopback, private ones, the tailnet."""


@dataclass(frozen=True)
class Wall:
    """What the processes of one user, the containers behind one bridge, or one program may reach.

    ``callers`` maps ``ip`` and ``ip6`` to the networks that T1 may answer. ``peers`` are matches in
    nftables' syntax for the addresses that it may call. ``clouds`` are resolved on the host.
    """

    name: str
    tier: Tier
    callers: dict[str, list[str]]
    peers: list[str]
    clouds: list[Cloud]
    user: str = ""
    bridge: str = ""
    mark: str = ""

    @property
    def chain(self) -> str:
        """The name of its chain."""
        return f"from-{self.name}"


def lies_within(
    network: str, others: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    """Whether one of the ``others`` contains the whole network (CIDR)."""
    parsed = ipaddress.ip_network(network)
    return any(
        parsed.version == other.version and parsed.subnet_of(other)  # type: ignore[arg-type]
        for other in others
    )


def is_sovereign(network: str) -> bool:
    """Whether data of a T1 service may go to a network (CIDR)."""
    return lies_within(network, SOVEREIGN)


def _family(network: str) -> str:
    return "ip" if ipaddress.ip_network(network).version == 4 else "ip6"


def _by_family(networks: Iterable[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for network in networks:
        found.setdefault(_family(network), []).append(network)
    return found


def _match(peer: Peer) -> str:
    port = f" {peer.protocol} dport {peer.port}" if peer.port else ""
    return f"{_family(peer.network)} daddr {peer.network}{port}"


def _beyond(service: Service) -> list[str]:
    return [network for network in callers(service) if network not in LOOPBACK]


def _answered(service: Service) -> dict[str, list[str]]:
    # All of loopback is on this machine; the other networks are those of the service's sandbox.
    return _by_family(["127.0.0.0/8", "::1", *_beyond(service)])


def walls(settings: HostSettings) -> list[Wall]:
    """The walls of users: one for each T1 service, and for others with declared peers or clouds."""
    return [
        Wall(
            service.name,
            service.tier,
            _answered(service),
            [_match(peer) for peer in service.peers],
            service.clouds,
            user=service.user,
        )
        for service in declared_services(settings)
        if service.user != "root" and (service.tier == "T1" or service.peers or service.clouds)
    ]


def bridges(settings: HostSettings) -> list[Wall]:
    """The walls of Docker's networks: each of T1, and others with declared peers or clouds."""
    return [
        Wall(
            network.name,
            network.tier,
            _by_family(
                dict.fromkeys(
                    caller
                    for service in settings.services
                    if service.network == network.name
                    for caller in _beyond(service)
                )
            ),
            [_match(peer) for peer in network.peers],
            network.clouds,
            bridge=bridge(network),
        )
        for network in networks(settings)
        if network.tier == "T1" or network.peers or network.clouds
    ]


def tailscaled(settings: HostSettings) -> list[Wall]:
    """The wall for tailscaled's TCP connections, if the control server is not Tailscale's.

    When tailscaled cannot reach that server, it asks Tailscale's own relays for the address, and so
    discloses the server's name. UDP is not restricted, because peers may be anywhere.
    """
    if settings.tailnet is None or settings.tailnet.control_server is None:
        return []
    # It forwards this machine's DNS queries, to any resolver that the tailnet names.
    peers = [*(f"{_family(str(each))} daddr {each}" for each in SOVEREIGN), "tcp dport 53"]
    clouds = []
    for called in tailnet.called(settings.tailnet):
        try:
            address = ipaddress.ip_address(called.name)
        except ValueError:
            clouds.append(called)
        else:
            peers.append(f"{_family(called.name)} daddr {address} tcp dport {called.port}")
    return [Wall("tailscaled", "T4", {}, peers, clouds, mark=TAILSCALED_MARK)]


def other_tiers(settings: HostSettings) -> dict[str, list[int]]:
    """Ports of services that are not T1, by protocol; T1 could send data out through them."""
    found: dict[str, set[int]] = {}
    for service in declared_services(settings):
        for listen in service.listens if service.tier != "T1" else ():
            found.setdefault(listen.protocol, set()).add(listen.port)
    return {protocol: sorted(ports) for protocol, ports in sorted(found.items())}


def every_wall(settings: HostSettings) -> list[Wall]:
    """The walls of users, of networks and of tailscaled."""
    return [*walls(settings), *bridges(settings), *tailscaled(settings)]


def rules(settings: HostSettings) -> str:
    """The table in nftables' syntax, without the rules that send users to their walls."""
    return render(
        "egress/egress.nft.j2",
        program=PROGRAM,
        table=TABLE,
        log_prefix=egress_program.LOG_PREFIX,
        counter=egress_program.COUNTER,
        doors=DOORS,
        unknown_users=egress_program.UNKNOWN_USERS,
        multicast=MULTICAST,
        door_mark=f"{MARK:#x}",
        own_mark=f"{OWN_MARK:#x}",
        walls=every_wall(settings),
        bridges=bridges(settings),
        other_tiers=other_tiers(settings),
        resolver_ports=RESOLVER_PORTS,
        tailscale_services=TAILSCALE_SERVICES,
    )


def users(settings: HostSettings) -> str:
    """User to the service whose wall applies, in JSON for the program."""
    return json.dumps({wall.user: wall.name for wall in walls(settings)}, indent=1) + "\n"


def clouds(settings: HostSettings) -> str:
    """Wall to the names and ports that it may call, and the resolvers, in JSON for the program.

    Besides the host's resolvers, containers ask those in Docker's configuration.
    """
    found = {
        wall.name: [[cloud.name, cloud.port] for cloud in wall.clouds]
        for wall in every_wall(settings)
        if wall.clouds
    }
    resolvers = settings.docker.dns if settings.docker else []
    return json.dumps({"clouds": found, "resolvers": resolvers}, indent=1) + "\n"


def sovereign_networks(settings: HostSettings) -> str:
    """Docker's networks of T1 and their bridges, in JSON for the program."""
    found = {wall.name: wall.bridge for wall in bridges(settings) if wall.tier == "T1"}
    return json.dumps(found, indent=1) + "\n"


def programs(settings: HostSettings) -> list[Program]:
    """What loads the rules, what looks at them, and what looks up the clouds' addresses."""
    resolves = Directive(
        "RestrictAddressFamilies", "AF_UNIX AF_NETLINK AF_INET AF_INET6", "it asks resolvers"
    )
    return [
        replace(
            kernel_rules.loader("egress", "Holdfast: what each service may reach", PROGRAM),
            source=egress_program,
            files=(
                File(RULES, rules(settings), validate="nft --check --file {}"),
                File(USERS, users(settings)),
                File(CLOUDS, clouds(settings)),
                File(NETWORKS, sovereign_networks(settings), read_at_start=False),
                File(REQUEST_KEYS, render("egress/request-key.conf.j2"), read_at_start=False),
            ),
        ),
        kernel_rules.watch(
            "egress",
            "Holdfast: tell of attempts to leave, and keep the rules as they were loaded",
            PROGRAM,
            after=SERVICE,
        ),
        Program(
            service=Service(name="egress-resolve", unit=RESOLVE, user="root", tier="T1"),
            description="Holdfast: look up the clouds that services may call",
            kind="oneshot",
            command=(PROGRAM, "resolve"),
            # New ones are looked up at once.
            reads=(CLOUDS,),
            runtime="holdfast/egress",
            start_seconds=300,
            order=(Directive("After", f"{SERVICE} network-online.target"), UNRATIONED),
            # What it logs are names that do not resolve.
            tuned=(kernel_rules.KEEPS, LOGS_NO_STARTS),
            isolated=True,
            relaxed=(
                *(each for each in LOADS_RULES if each.name != resolves.name),
                resolves,
                Directive("IPAddressDeny", "", "a resolver may be anywhere"),
            ),
            timer=replace(
                EVERY_MINUTE,
                lines=(Directive("OnActiveSec", "1s"), *EVERY_MINUTE.lines[1:]),
                armed=any(wall.clouds for wall in every_wall(settings)),
            ),
        ),
    ]


def has_drop_in(service: Service) -> bool:
    """Whether a drop-in of systemd restricts a service that the inventory declares."""
    return (
        service.tier == "T1"
        and service.user != "root"
        and service.unit.endswith(".service")
        and not service.in_container
        and not service.is_tenant
    )


def not_held(settings: HostSettings) -> str | None:
    """A sentence for the plan on what this distribution cannot enforce, or None."""
    users = sorted({wall.user for wall in walls(settings) if wall.tier == "T1"})
    if not users or not settings.distribution.startswith("ubuntu"):
        return None
    return (
        "Ubuntu's systemd-resolved and snapd send data out for any user who opens their"
        " sockets. Units of T1 cannot see these sockets; a program that is started in another"
        f" way as {', '.join(users)} can"
    )


def drop_ins(settings: HostSettings) -> dict[str, str]:
    """Unit to the text of its drop-in, for T1 services whose units the inventory only names.

    The socket unit of each gets one too, whether it exists or not. The kernel's rules see root as
    the owner of its sockets, and a service's list of addresses does not apply to them
    (systemd.resource-control(5)).
    """
    return {
        f"{service.unit.removesuffix('.service')}.{kind.lower()}": render(
            "egress/tier.conf.j2",
            kind=kind,
            service=service,
            rules=RULES,
            seen=[NOTIFY_SOCKET, *LOG_SOCKETS],
            networks=dict.fromkeys([*LOOPBACK, "::1/128", *allowed(service)]),
        )
        for service in settings.services
        if has_drop_in(service)
        for kind in ("Service", "Socket")
    }


def drop_in_path(unit: str) -> str:
    """The path of a unit's drop-in."""
    return f"{SYSTEM}/{unit}.d/{DROP_IN}"
