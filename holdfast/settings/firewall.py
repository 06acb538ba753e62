"""The settings under ``interfaces`` and ``firewall``.

For example::

    "interfaces": {"enp5s0": {"role": "lan"}, "enp6s0": {"role": "storage"}},
    "firewall": {
        "openings": [
            {
                "port": 5353,
                "protocol": "udp",
                "interface": "enp5s0",
                "sources": ["192.168.1.0/24", "fd00:1::/64"],
                "reason": "printer discovery",
            }
        ]
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.types import Cidr, Interface, Model, Port, Reason


class NetworkInterface(Model):
    """A physical interface and its role. The firewall treats all of them as external."""

    role: Literal["lan", "management", "storage"]


class Opening(Model):
    """An open port of the firewall that belongs to no declared service."""

    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    sources: list[Cidr] = Field(min_length=1)
    interface: Interface | None = None
    container: bool = False
    """The port is published by Docker: it is opened in DOCKER-USER, not in INPUT."""
    public: bool = False
    """Required when ``sources`` holds the whole internet."""
    reason: Reason


class Firewall(Model):
    """UFW, default deny, IPv4 and IPv6, Docker included."""

    openings: list[Opening] = []
    rollback_seconds: int = Field(default=180, ge=30, le=3600)
    """Time for a new login to confirm a change of the firewall or of SSH before the host undoes it,
    seconds."""
