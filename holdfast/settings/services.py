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
    """The port and callers of a service.

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
    """The check that a service answers, not only that it runs."""

    url: LocalUrl
    contains: Text
    """Text that the first MiB of the answer's body must contain. A redirect is not an answer."""
    timeout_seconds: int = Field(default=30, ge=1, le=600)


class Service(Model):
    """One long-running program on a host."""

    name: Name
    unit: UnitName
    user: UserName
    tier: Tier
    listens: list[Listen] = []
    peers: list[Peer] = []
    """What it may call. A T1 service reaches no others. A service of another tier is restricted to
    its peers if it declares any."""
    clouds: list[Cloud] = []
    """Names on the internet that a T2, T3 or T4 service may call. If it declares any, it reaches no
    others."""
    run_paths: list[AbsolutePath] = []
    """Sockets of other programs below /run that a T1 service opens, or their folders. Otherwise its
    unit sees only its own RuntimeDirectory and the log there."""
    network: Name | None = None
    """The network under ``docker.networks`` that its container is on; a T1 container needs one."""
    gpu_mib: int = Field(default=0, ge=0)
    """GPU memory that it may use, MiB."""
    cards: list[Name] = []
    """The declared cards on which it uses that much, each; empty: any card."""
    memory_max_mib: int | None = Field(default=None, ge=16)
    data: list[DataPath] = []
    health: HealthCheck | None = None
    idle: HealthCheck | None = None
    """The check that it is idle, before a switch to another mode. Without it, the service is idle
    when its cards are."""
