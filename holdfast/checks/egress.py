"""Whether the declared peers and clouds of services and networks fit their tiers."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.checks.paths import is_below_any
from holdfast.docker_networks import networks
from holdfast.egress import RESOLVER_PORTS, has_drop_in, is_sovereign
from holdfast.sandbox import RUN
from holdfast.settings import DockerNetwork, HostSettings, Service, Tier

ALLOW_LISTED: tuple[Tier, ...] = ("T3", "T4")
"""Tiers whose services and networks must declare what they call."""
NO_PEER, ANY_PEER = "127.0.0.1/32", ("0.0.0.0/0", "::/0")


_OTHERS_SOCKETS = (
    *("/run/docker", "/run/docker.sock", "/run/containerd", "/run/podman", "/run/libvirt"),
    *("/run/dbus", "/run/systemd", "/run/user", "/run/tailscale", "/run/avahi-daemon"),
    *("/run/snapd", "/run/snapd.socket", "/run/snapd-snap.socket", "/run/udev", "/run/cups"),
    *("/run/rpcbind.sock", "/run/nscd", "/run/chrony"),
)
"""Sockets of programs that run as root, or that send data to other machines for their callers."""


def tiers(settings: HostSettings) -> Findings:
    """Declarations that would send data where their tier forbids it."""
    for index, network in enumerate(networks(settings)):
        if network.tier == "T1":
            yield from _calls(f"docker.networks[{index}]", network)
        yield from _says_whom(f"docker.networks[{index}]", network)
    for index, service in enumerate(settings.services):
        key = f"services[{index}]"
        called = {
            "peers": [peer.network for peer in service.peers],
            "clouds": [cloud.name for cloud in service.clouds],
        }
        yield from _sees(key, service)
        field = next(filter(called.get, called), None)
        if field and service.in_container:
            yield Finding(
                f"{key}.{field}",
                called[field],
                "it runs in a container, whose packets carry no user of this host, so its"
                f" {field} could not be enforced",
                "declare them on its network under docker.networks",
            )
        elif service.tier == "T1":
            yield from _calls(key, service)
            yield from _answers(key, service)
        elif service.user != "root":
            yield from _says_whom(key, service)


def _sees(key: str, service: Service) -> Findings:
    if service.run_paths and not has_drop_in(service):
        yield Finding(
            f"{key}.run_paths",
            service.run_paths,
            "run_paths only applies to a T1 service with a .service unit and its own user",
            "remove it",
        )
    for place, path in enumerate(service.run_paths):
        if is_below_any(path, _OTHERS_SOCKETS):
            yield Finding(
                f"{key}.run_paths[{place}]",
                path,
                "a program that opens it can become root, or send data through a program that"
                " no tier restricts",
                "remove it, or give the service another tier",
            )
        elif not path.startswith("/run/") or path == RUN:
            yield Finding(
                f"{key}.run_paths[{place}]",
                path,
                "this is not a socket below /run, or the folder of one program's sockets",
                "write one such as /run/postgresql",
            )


def _says_whom(key: str, caller: Service | DockerNetwork) -> Findings:
    if caller.tier in ALLOW_LISTED and not caller.clouds and not caller.peers:
        yield Finding(
            f"{key}.clouds",
            [],
            f"{caller.tier} may only call what it names",
            f"name its clouds or its peers ({NO_PEER} if it calls no other machine,"
            f" {' and '.join(ANY_PEER)} if it may call any machine)",
        )


def _calls(key: str, caller: Service | DockerNetwork) -> Findings:
    what = "service" if isinstance(caller, Service) else "network"
    for place, cloud in enumerate(caller.clouds):
        yield Finding(
            f"{key}.clouds[{place}].name",
            cloud.name,
            f"a T1 {what} must not call the internet",
            f"remove it, or give the {what} another tier",
        )
    for place, peer in enumerate(caller.peers):
        if not is_sovereign(peer.network):
            yield Finding(
                f"{key}.peers[{place}].network",
                peer.network,
                f"a T1 {what} may call private networks and the tailnet, but not the internet",
                f"write the one machine that it needs, or give the {what} another tier",
            )
        elif peer.port in RESOLVER_PORTS:
            yield Finding(
                f"{key}.peers[{place}].port",
                peer.port,
                "a resolver forwards queries to the internet, which T1 must not reach",
                "remove it, and name its peers by address or under base.hosts",
            )


def _answers(key: str, service: Service) -> Findings:
    for place, listen in enumerate(service.listens):
        where = f"{key}.listens[{place}]"
        if listen.scope == "public":
            yield Finding(
                f"{where}.scope",
                listen.scope,
                "a T1 service must not accept callers from the internet",
                "write 'lan' with sources, 'tailnet' or 'loopback'",
            )
        for source in listen.sources:
            if not is_sovereign(source):
                yield Finding(
                    f"{where}.sources",
                    source,
                    "a T1 service may accept private networks and the tailnet, but not the"
                    " internet",
                    "write the LAN's network, or give the service another tier",
                )
