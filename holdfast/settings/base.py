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
    """Free space that is required before anything is installed."""

    path: AbsolutePath
    free_gib: float = Field(gt=0, allow_inf_nan=False)


class Base(Model):
    """The basis of every other capability."""

    timezone: Timezone = "Etc/UTC"
    locale: Locale = "C.UTF-8"
    ntp_servers: list[HostOrAddress] = []
    """Empty: the distribution's pool."""
    hosts: dict[DnsName, Address] = {}
    """Names that are not in DNS, written to /etc/hosts."""
    trusted_cas: dict[Name, ControllerPath] = {}
    """Private authorities that this host must trust: name to PEM file on the controller."""
    disks: list[DiskCheck] = [DiskCheck(path="/", free_gib=4)]
    apt_lock_timeout_seconds: int = Field(default=300, ge=0, le=3600)
    journal_max_mib: int = Field(default=1024, ge=64)
    held_back: list[PackagePrefix] = ["nvidia-", "libnvidia-", "linux-modules-nvidia-"]
    """Package name prefixes that unattended upgrades skip, because user space that changes under a
    loaded kernel module breaks NVML until the next reboot. With Ubuntu's ready-made modules,
    kernels are held too; without linux-modules-nvidia- neither is held."""
