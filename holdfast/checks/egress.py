"""What services and Docker's networks may reach, held against their tiers."""

from __future__ import annotations

from holdfast.checks.finding import Finding, Findings
from holdfast.checks.paths import is_below_any
from holdfast.docker_networks import networks
from holdfast.egress import RESOLVER_PORTS, has_drop_in, is_sovereign
from holdfast.sandbox import RUN
from holdfast.settings import DockerNetwork, HostSettings, Service, Tier

ALLOW_LISTED: tuple[Tier, ...] = ("T3", "T4")
"""Tiers whose services and networks say whom they call."""
NOBODY, EVERYBODY = "127.0.0.1/32", ("0.0.0.0/0", "::/0")


_OTHERS_SOCKETS = (
    *("/run/docker", "/run/docker.sock", "/run/containerd", "/run/podman", "/run/libvirt"),
    *("/run/dbus", "/run/systemd", "/run/user", "/run/tailscale", "/run/avahi-daemon"),
    *("/run/snapd", "/run/snapd.socket", "/run/snapd-snap.socket", "/run/udev", "/run/cups"),
    *("/run/rpcbind.sock", "/run/nscd", "/run/chrony"),
)
"""Sockets of programs that run as root, or that send data to other machines for their callers."""


def tiers(settings: HostSettings) -> Findings:
    """Declarations that would carry data to where their tier says it never goes."""
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
        if field and any(listen.container for listen in service.listens):
            yield Finding(
                f"{key}.{field}",
                called[field],
                "it runs in a container, whose packets carry no user of this host: nothing would"
                f" hold it to its {field}",
                "declare them with its network under docker.networks",
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
            "only a T1 service with a .service unit and a user of its own is kept from what it does"
            " not declare",
            "remove it",
        )
    for place, path in enumerate(service.run_paths):
        if is_below_any(path, _OTHERS_SOCKETS):
            yield Finding(
                f"{key}.run_paths[{place}]",
                path,
                "who opens it becomes root, or calls others by a program that no tier holds",
                "remove it, or give the service its true tier",
            )
        elif not path.startswith("/run/") or path == RUN:
            yield Finding(
                f"{key}.run_paths[{place}]",
                path,
                "it names one socket below /run, or the folder of one program's sockets",
                "write for example /run/postgresql",
            )


def _says_whom(key: str, caller: Service | DockerNetwork) -> Findings:
    if caller.tier in ALLOW_LISTED and not caller.clouds and not caller.peers:
        yield Finding(
            f"{key}.clouds",
            [],
            f"{caller.tier} calls whom it names and no other",
            f"name its clouds or its peers ({NOBODY} where it calls nothing beyond this machine,"
            f" {' and '.join(EVERYBODY)} where it calls everybody)",
        )


def _calls(key: str, caller: Service | DockerNetwork) -> Findings:
    what = "service" if isinstance(caller, Service) else "network"
    for place, cloud in enumerate(caller.clouds):
        yield Finding(
            f"{key}.clouds[{place}].name",
            cloud.name,
            f"a T1 {what} never calls the internet",
            f"remove it, or give the {what} its true tier",
        )
    for place, peer in enumerate(caller.peers):
        if not is_sovereign(peer.network):
            yield Finding(
                f"{key}.peers[{place}].network",
                peer.network,
                f"a T1 {what} reaches private networks and the tailnet, never the internet",
                f"write the one machine it needs, or give the {what} its true tier",
            )
        elif peer.port in RESOLVER_PORTS:
            yield Finding(
                f"{key}.peers[{place}].port",
                peer.port,
                "a resolver carries what it is asked to the internet, and T1 never goes there",
                "remove it, and name its peers by address or under base.hosts",
            )


def _answers(key: str, service: Service) -> Findings:
    for place, listen in enumerate(service.listens):
        where = f"{key}.listens[{place}]"
        if listen.scope == "public":
            yield Finding(
                f"{where}.scope",
                listen.scope,
                "a T1 service answers no caller on the internet",
                "write 'lan' with sources, 'tailnet' or 'loopback'",
            )
        for source in listen.sources:
            if not is_sovereign(source):
                yield Finding(
                    f"{where}.sources",
                    source,
                    "a T1 service answers private networks and the tailnet, never the internet",
                    "write the LAN's network, or give the service its true tier",
                )
