"""The sandbox of a service's unit, from its declared user, tier, data, memory and network.

Every unit starts from the same closed sandbox. If a program needs an exception, a `Directive` opens
it and gives the reason, which is written into the unit above the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from holdfast.settings import Service

LOOPBACK = ("127.0.0.1/32",)
"""Not 127.0.0.0/8, which would open the stub resolver and the routers of other tiers."""
TAILNET = ("100.64.0.0/10", "fd7a:115c:a1e0::/48")
"""The ranges from which Tailscale and headscale assign addresses."""
EXPOSURE_MAX = 2.0
"""Highest score of `systemd-analyze security` for a unit that runs as a user of its own."""
EXPOSURE_MAX_ROOT = 2.5
"""Highest score for a unit that must be root, because it reads or restores files of all users."""

RUN = "/run/holdfast"
"""The folder of all sockets of ours, and the only part of /run that our units see."""
NOTIFY_SOCKET = "/run/systemd/notify"
"""The socket on which a unit reports to systemd that it is ready."""

AS_ROOT = (
    "+/usr/bin/env -i --chdir=/ PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)
"""Prefix of a command that a unit runs with full privileges. ``+`` alone would keep the unit's
environment and working folder, and root's Python would then run files in the service's HOME."""


@dataclass(frozen=True)
class Directive:
    """One line of a unit's [Service] section. ``reason`` says why it is wider than the rule."""

    name: str
    value: str
    reason: str = ""


_CLOSED = (
    Directive("NoNewPrivileges", "yes"),
    Directive("CapabilityBoundingSet", ""),
    Directive("AmbientCapabilities", ""),
    Directive("UMask", "0077"),
    Directive("KeyringMode", "private"),
    # A core dump would hold the credentials.
    Directive("LimitCORE", "0"),
    Directive("ProtectSystem", "strict"),
    Directive("ProtectHome", "yes"),
    Directive("PrivateTmp", "yes"),
    Directive("PrivateDevices", "yes"),
    Directive("DevicePolicy", "closed"),
    Directive("PrivateUsers", "yes"),
    Directive("PrivateIPC", "yes"),
    Directive("RemoveIPC", "yes"),
    Directive("ProtectClock", "yes"),
    Directive("ProtectHostname", "yes"),
    Directive("ProtectControlGroups", "yes"),
    Directive("ProtectKernelLogs", "yes"),
    Directive("ProtectKernelModules", "yes"),
    Directive("ProtectKernelTunables", "yes"),
    Directive("ProtectProc", "invisible"),
    Directive("ProcSubset", "pid"),
    Directive("RestrictNamespaces", "yes"),
    Directive("RestrictRealtime", "yes"),
    Directive("RestrictSUIDSGID", "yes"),
    Directive("LockPersonality", "yes"),
    Directive("MemoryDenyWriteExecute", "yes"),
    Directive("SystemCallArchitectures", "native"),
    Directive("SystemCallFilter", "@system-service"),
    # @keyring too: for a key of type dns_resolver the kernel asks a resolver as root, from any
    # network namespace (keyutils, which nfs-common installs).
    Directive("SystemCallFilter", "~@privileged @resources @keyring"),
    Directive("SystemCallErrorNumber", "EPERM"),
)


LOADS_RULES = (
    Directive("PrivateNetwork", "no", "the rules are those of this machine's network"),
    Directive("RestrictAddressFamilies", "AF_UNIX AF_NETLINK", "rules are loaded over netlink"),
    Directive("CapabilityBoundingSet", "CAP_NET_ADMIN", "loading and reading rules needs it"),
    Directive("PrivateUsers", "no", "the rules belong to the machine's own root"),
)
"""The lines of a unit that loads the kernel's firewall rules; it runs as root."""


def _network(service: Service, isolated: bool) -> list[Directive]:
    if isolated:
        return [
            Directive("PrivateNetwork", "yes"),
            Directive("RestrictAddressFamilies", "AF_UNIX"),
            Directive("IPAddressDeny", "any"),
        ]
    families = Directive("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6")
    if service.tier != "T1":
        return [families]
    return [
        families,
        Directive("IPAddressDeny", "any"),
        *(Directive("IPAddressAllow", network) for network in allowed(service)),
    ]


def callers(service: Service) -> list[str]:
    """The networks (CIDR) that may call a T1 service; they follow from where it listens."""
    networks: list[str] = []
    for listen in service.listens:
        networks += LOOPBACK
        networks += TAILNET if listen.scope == "tailnet" else ()
        networks += listen.sources if listen.scope == "lan" else ()
    return list(dict.fromkeys(networks))


def allowed(service: Service) -> list[str]:
    """The networks (CIDR) with which a T1 service may exchange packets: callers and peers."""
    called = [peer.network for peer in service.peers]
    return list(dict.fromkeys([*callers(service), *called]))


def _sockets(service: Service, isolated: bool) -> list[Directive]:
    """The lines that hide all sockets below /run from a user, except ours.

    Root's programs listen there for every user (D-Bus, a resolver, snapd), and some of them forward
    data for a user. A network namespace does not prevent that.
    """
    if service.user == "root" or not (isolated or service.tier == "T1"):
        return []
    return [
        Directive("TemporaryFileSystem", "/run:ro"),
        Directive("BindReadOnlyPaths", f"{RUN} {NOTIFY_SOCKET}"),
    ]


def sandbox(
    service: Service,
    *,
    isolated: bool = False,
    relaxed: Sequence[Directive] = (),
) -> list[Directive]:
    """The [Service] lines that confine ``service``, in the order of the unit.

    ``isolated`` removes the network, for a program that callers reach through sockets of systemd.
    Each ``relaxed`` directive replaces the default lines of that name, or is added if there are
    none.

    Raises:
        ValueError: a relaxation gives no reason.
    """
    unexplained = [directive.name for directive in relaxed if not directive.reason]
    if unexplained:
        raise ValueError(f"{service.unit}: say why {', '.join(unexplained)} is relaxed")
    replaced = {directive.name for directive in relaxed}
    writable = [data.path for data in service.data if data.backup == "state"]
    lines = [
        Directive("User", service.user),
        *_CLOSED,
        *_network(service, isolated),
        *_sockets(service, isolated),
        # The path may not exist before the first start.
        *(Directive("ReadWritePaths", f"-{path}") for path in writable),
    ]
    if service.memory_max_mib is not None:
        lines.append(Directive("MemoryMax", f"{service.memory_max_mib}M"))
    return [*(line for line in lines if line.name not in replaced), *relaxed]
