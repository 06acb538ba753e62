"""Tiers, and what a service or a container network may call.

For example::

    "docker": {
        "networks": [
            {
                "name": "agents",
                "tier": "T4",
                "peers": [{"network": "192.168.1.30/32", "port": 5432}],
                "clouds": [{"name": "api.example.org"}],
            }
        ]
    }
"""

from __future__ import annotations

from typing import Literal

from holdfast.types import Cidr, DnsName, Model, Port

Tier = Literal["T1", "T2", "T3", "T4"]
"""Sovereignty tier: T1 sovereign, T2 local first, T3 cloud explicit, T4 coordination."""

LOOPBACK_OF: dict[Tier, str] = {
    "T1": "127.0.0.1",
    "T2": "127.0.0.2",
    "T3": "127.0.0.3",
    "T4": "127.0.0.4",
}
"""The loopback address on which Holdfast's own programs of a tier listen. systemd lets a T1 unit
exchange packets with the first only, so not even root in that unit can reach a router with
clouds."""


class Peer(Model):
    """A network that a service may call. It may always call loopback, except ports of another
    tier."""

    network: Cidr
    port: Port | None = None
    """Default: every port and every protocol."""
    protocol: Literal["tcp", "udp"] = "tcp"


class Cloud(Model):
    """A name on the internet that a service calls over TCP."""

    name: DnsName
    port: Port = 443
