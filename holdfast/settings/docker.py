"""The settings under ``docker``.

For example::

    "docker": {
        "dns": ["192.168.1.1"],
        "networks": [
            {"name": "home", "tier": "T1", "subnets": ["172.30.0.0/24", "fd99:8::/64"]},
        ],
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.egress import Cloud, Peer, Tier
from holdfast.settings.sources import AptRepository
from holdfast.types import Address, Cidr, Model, Name


class DockerNetwork(Model):
    """A network for containers, all of which the kernel holds to its tier."""

    name: Name = Field(max_length=12)
    """What `docker run --network` and compose files call it; its bridge is ``br-NAME``."""
    tier: Tier
    peers: list[Peer] = []
    """Whom its containers call. Those of T1 reach these and each other alone; those of another
    tier are held to these once there are some."""
    clouds: list[Cloud] = []
    """Names on the internet that its containers call, unless they are T1; with some, they reach no
    other."""
    subnets: list[Cidr] = Field(default=[], max_length=2)
    """A private network each for IPv4 and IPv6. Docker chooses where there is none of IPv4; with
    none of IPv6 its containers have no IPv6."""


class Docker(Model):
    """The container engine."""

    source: Literal["vendor", "distribution"] = "vendor"
    repository: AptRepository | None = None
    """A mirror of the vendor's repository; only with ``source="vendor"``."""
    log_max_mib: int = Field(default=10, ge=1)
    log_max_files: int = Field(default=3, ge=1)
    dns: list[Address] = []
    """Resolvers that containers ask, from where they are. Empty: whom the host asks, by the engine
    itself where containers cannot reach them."""
    networks: list[DockerNetwork] = []
    """Networks whose containers are held to a tier; nothing holds those on others."""
