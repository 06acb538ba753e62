"""The settings under ``services``.

A service is declared once; unit sandbox, firewall, backup and checks all derive from this.

For example::

    "services": [
        {
            "name": "photos",
            "unit": "photos.service",
            "user": "photos",
            "tier": "T1",
            "listens": [{"port": 2342, "scope": "tailnet", "callers": ["group:family"]}],
            "peers": [{"network": "192.168.1.30/32", "port": 5432}],
            "run_paths": ["/run/postgresql"],
            "data": [{"path": "/srv/photos", "backup": "state"}],
            "health": {"url": "http://127.0.0.1:2342/health", "contains": "ok"},
        }
    ]
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.backup import DataPath
from holdfast.settings.egress import Cloud, Peer, Tier
from holdfast.types import (
    AbsolutePath,
    Caller,
    Cidr,
    Interface,
    LocalUrl,
    Model,
    Name,
    Port,
    Text,
    UnitName,
    UserName,
)


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
