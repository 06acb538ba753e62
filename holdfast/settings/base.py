"""The settings under ``base``: time, names, authorities, disks, log and upgrades.

For example::

    "base": {
        "timezone": "Europe/Berlin",
        "ntp_servers": ["192.168.1.1"],
        "hosts": {"nas.home.arpa": "192.168.1.30"},
        "trusted_cas": {"home": "~/ca/home.pem"},
        "disks": [{"path": "/var/lib", "free_gib": 200}],
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.types import (
    AbsolutePath,
    Address,
    ControllerPath,
    DnsName,
    HostOrAddress,
    Locale,
    Model,
    Name,
    PackagePrefix,
    Timezone,
)

Distribution = Literal["debian12", "debian13", "ubuntu2404", "ubuntu2604"]


class DiskCheck(Model):
    """Space that must be there before anything is installed."""

    path: AbsolutePath
    free_gib: float = Field(gt=0, allow_inf_nan=False)


class Base(Model):
    """The ground every other capability stands on."""

    timezone: Timezone = "Etc/UTC"
    locale: Locale = "C.UTF-8"
    ntp_servers: list[HostOrAddress] = []
    """Empty: the distribution's pool."""
    hosts: dict[DnsName, Address] = {}
    """Names that DNS does not know, written to /etc/hosts."""
    trusted_cas: dict[Name, ControllerPath] = {}
    """Name to PEM file on the controller: private authorities this host must trust."""
    disks: list[DiskCheck] = [DiskCheck(path="/", free_gib=4)]
    apt_lock_timeout_seconds: int = Field(default=300, ge=0, le=3600)
    journal_max_mib: int = Field(default=1024, ge=64)
    held_back: list[PackagePrefix] = ["nvidia-", "libnvidia-", "linux-modules-nvidia-"]
    """Package name prefixes that unattended upgrades must not touch: user space that moves under
    a loaded kernel module breaks NVML until the next reboot. Where Ubuntu's ready-made modules
    drive the cards, kernels are held with them; without linux-modules-nvidia- neither is."""
