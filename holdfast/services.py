"""A service is declared once; unit sandbox, firewall, backup and checks all derive from this."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.types import (
    AbsolutePath,
    Caller,
    Cidr,
    DnsName,
    Interface,
    LocalUrl,
    Model,
    Name,
    Port,
    Text,
    UnitName,
    UserName,
)

Tier = Literal["T1", "T2", "T3", "T4"]
"""Sovereignty tier: T1 sovereign, T2 local first, T3 cloud explicit, T4 coordination."""

LOOPBACK_OF: dict[Tier, str] = {
    "T1": "127.0.0.1",
    "T2": "127.0.0.2",
    "T3": "127.0.0.3",
    "T4": "127.0.0.4",
}
"""Where what Holdfast runs for a tier listens on loopback. systemd lets a T1 unit exchange packets
with the first alone, so not even root in there reaches what leads on to a cloud."""


class Listen(Model):
    """Where a service can be reached.

    ``loopback``: this host only. ``tailnet``: loopback and tailnet peers. ``lan``: loopback and
    the given ``sources`` on a declared LAN ``interface``. ``public``: any address, any interface.
    """

    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    scope: Literal["loopback", "tailnet", "lan", "public"] = "loopback"
    interface: Interface | None = None
    sources: list[Cidr] = []
    callers: list[Caller] = []
    """Who on the tailnet may call it, with scope ``tailnet``; empty: every member."""
    container: bool = False
    """The port is published by Docker: it is opened in DOCKER-USER, not in INPUT."""


class Peer(Model):
    """Somebody a service may call; loopback it always may, but for what is of another tier."""

    network: Cidr
    port: Port | None = None
    """Every port, and every protocol, when absent."""
    protocol: Literal["tcp", "udp"] = "tcp"


class Cloud(Model):
    """A name on the internet that a service calls by TCP."""

    name: DnsName
    port: Port = 443


class DataPath(Model):
    """A directory or file a service owns, and what a backup owes it.

    ``state`` is backed up; ``secret`` is backed up and never world readable; ``derived`` can be
    made again (models, caches) and is left out.
    """

    path: AbsolutePath
    backup: Literal["state", "secret", "derived"]


class HealthCheck(Model):
    """How to tell that a service answers, not merely that it runs."""

    url: LocalUrl
    contains: Text
    """Text that the first MiB of the answer's body must hold. A redirection is no answer."""
    timeout_seconds: int = Field(default=30, ge=1, le=600)


class Service(Model):
    """One long-running program on a host."""

    name: Name
    unit: UnitName
    user: UserName
    tier: Tier
    listens: list[Listen] = []
    peers: list[Peer] = []
    """Whom it calls. A T1 service reaches no other; one of another tier is held to its peers
    once it declares some."""
    clouds: list[Cloud] = []
    """Names on the internet that a T2, T3 or T4 service calls; with some, it reaches no other."""
    run_paths: list[AbsolutePath] = []
    """Sockets of other programs below /run that a T1 service opens, or the folders they lie in; its
    unit sees nothing else there but its own RuntimeDirectory and the log."""
    network: Name | None = None
    """The network under ``docker.networks`` that its container is on; a T1 container needs one."""
    gpu_mib: int = Field(default=0, ge=0)
    """GPU memory it may claim, MiB."""
    cards: list[Name] = []
    """The declared cards of which it claims that much, each; empty: whichever it finds."""
    memory_max_mib: int | None = Field(default=None, ge=16)
    data: list[DataPath] = []
    health: HealthCheck | None = None
    idle: HealthCheck | None = None
    """How to tell that it has nothing to do, before its cards are given to another mode; without
    it, it is idle when its cards are."""
