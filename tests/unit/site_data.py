"""An inventory in which nothing is wrong, for tests that make one thing wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from holdfast.types import NOTHING

SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
KEY = (
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f operator@home"
)
SECRETS = {
    "TAILSCALE_AUTH_KEY": "5d1f0a7be2c94836a1b7e05c3f9d2864",
    "FLOOR_API_KEY": "f1oor-9aKx27Qm-Zp40Lw",
    "NAS_BACKUP": "n4s-Vb81xTq-77Lmyr0w",
    "OFFSITE_BACKUP": "0ffs1te-Gh29sKd-45Pzn",
    "OFFSITE_LOGIN": "l0gin-Wm63bYc-18Rtfx2",
    "WORK_KEY": "w0rk-Rt58pLz-31Vqmc9x",
}


PLACEHOLDERS = {
    NOTHING: SHA256,
    "0123456789abcdef0123456789abcdef01234567": "9217f5db79a29953eb74d5343926648285ec7e67",
    "backup.example.org": "backup.house.example",
}
"""Placeholders of the inventories that come with Holdfast, and what might stand there."""


def filled_in(inventory: Path) -> str:
    """The text of an inventory with its placeholders replaced."""
    text = inventory.read_text()
    for placeholder, own in PLACEHOLDERS.items():
        text = text.replace(placeholder, own)
    return text


def keep_secrets(folder: Path, secrets: dict[str, str]) -> None:
    """Write `.env` into ``folder`` as an operator would."""
    env = folder / ".env"
    env.touch(mode=0o600)
    env.write_text("".join(f"{name}={value}\n" for name, value in secrets.items()))


def good() -> dict[str, dict[str, Any]]:
    """Data of two hosts, by inventory name."""
    rack = {
        "hostname": "rack",
        "distribution": "debian13",
        "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
        "lan_address": "192.168.1.40",
        "ssh_hostname": "rack",
        "ssh_user": "operator",
        "_sudo": True,
        "base": {"timezone": "Europe/Berlin", "hosts": {"offsite.example": "203.0.113.7"}},
        "ssh": {"authorised_keys": {"operator": [KEY]}},
        "firewall": {
            "openings": [
                {
                    "port": 8088,
                    "interface": "eth1",
                    "sources": ["192.168.1.0/24"],
                    "container": True,
                    "reason": "web page for the house",
                }
            ]
        },
        "tailnet": {"tags": ["tag:rack"], "control_server": "https://headscale.example"},
        "storage": {
            "mounts": [
                {
                    "name": "nas",
                    "server": "nas.home.arpa",
                    "export": "/srv/holdfast",
                    "path": "/mnt/nas",
                }
            ],
            "models": [
                {
                    "name": "small",
                    "source": "/mnt/nas/models/small.gguf",
                    "sha256": SHA256,
                    "size_mib": 400,
                    "filename": "small.gguf",
                }
            ],
        },
        "floor": {
            "release": {
                "version": "b7500",
                "url": "https://files.example/b7500/llama.tar.gz",
                "sha256": SHA256,
            },
            "model": "small",
            "memory_max_mib": 2048,
        },
        "backup": {
            "repositories": [
                {
                    "name": "nas",
                    "kind": "path",
                    "path": "/mnt/nas/backup",
                    "password": "NAS_BACKUP",
                },
                {
                    "name": "offsite",
                    "kind": "rest",
                    "url": "https://offsite.example:8000/rack",
                    "user": "rack",
                    "user_password": "OFFSITE_LOGIN",
                    "password": "OFFSITE_BACKUP",
                    "append_only": True,
                },
            ],
            "paths": [{"path": "/srv/data", "backup": "state"}],
        },
        "services": [
            {
                "name": "photos",
                "unit": "photos.service",
                "user": "photos",
                "tier": "T1",
                "listens": [
                    {
                        "port": 2342,
                        "scope": "lan",
                        "interface": "eth1",
                        "sources": ["192.168.1.0/24"],
                    }
                ],
                "data": [{"path": "/srv/photos", "backup": "state"}],
                "health": {"url": "http://127.0.0.1:2342/", "contains": "Photos"},
            }
        ],
    }
    station = {
        "hostname": "station",
        "distribution": "ubuntu2404",
        "interfaces": {"enp5s0": {"role": "lan"}},
        "lan_address": "192.168.1.41",
        "ssh_hostname": "station",
        "ssh_user": "operator",
        "_sudo": True,
    }
    return {"rack": rack, "station": station}
