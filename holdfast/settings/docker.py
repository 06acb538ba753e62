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
    """A network for containers. The kernel enforces its tier for all of them."""

    name: Name = Field(max_length=12)
    """Its name for `docker run --network` and compose files; its bridge is ``br-NAME``."""
    tier: Tier
    peers: list[Peer] = []
    """What its containers may call. Containers on T1 reach only these and each other. Those of
    another tier are restricted to these if the list is not empty."""
    clouds: list[Cloud] = []
    """Names on the internet that its containers may call, except on T1. If the list is not empty,
    they reach no others."""
    subnets: list[Cidr] = Field(default=[], max_length=2)
    """One private network for IPv4 and one for IPv6. Docker chooses the IPv4 network if it is
    missing; without an IPv6 network its containers have no IPv6."""


class Docker(Model):
    """The container engine."""

    source: Literal["vendor", "distribution"] = "vendor"
    repository: AptRepository | None = None
    """A mirror of the vendor's repository; only with ``source="vendor"``."""
    log_max_mib: int = Field(default=10, ge=1)
    log_max_files: int = Field(default=3, ge=1)
    dns: list[Address] = []
    """Resolvers of containers, asked from the container's network. Empty: the host's resolvers,
    which Docker itself asks if containers cannot reach them."""
    networks: list[DockerNetwork] = []
    """Networks whose tier the kernel enforces. Containers on other networks are not restricted."""
