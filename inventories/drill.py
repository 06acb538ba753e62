"""The drill's rack: a virtual machine with nothing on it, in the lab that `make drill` builds.

The lab chooses its ports, keys and folders and writes them to `.lab/lab.json` (HOLDFAST_LAB names
another place); its secrets are in the folder HOLDFAST_SECRETS names.
"""

import json
import os
from pathlib import Path

_lab = json.loads(Path(os.environ.get("HOLDFAST_LAB", ".lab/lab.json")).read_text())
_codename = {12: "bookworm", 13: "trixie"}[_lab["debian"]]
_lan = "10.77.0.0/24"

hosts = [
    (
        "@rack/rack",
        {
            "hostname": "rack",
            "distribution": f"debian{_lab['debian']}",
            "interfaces": {"eth0": {"role": "management"}, "eth1": {"role": "lan"}},
            # Both names are aliases in the lab's ssh_config: the LAN's leads through a forwarded
            # port, the tailnet's through `tailscale nc`.
            "lan_address": "rack-lan",
            "ssh_hostname": "rack",
            "ssh_config_file": _lab["ssh_config"],
            "ssh_user": "operator",
            "_sudo": True,
            "base": {
                # The lab has no DNS of its own.
                "hosts": _lab["hosts"],
                "trusted_cas": {"lab": _lab["ca_file"]},
                # A virtual disk of a few GiB, most of which stays free.
                "disks": [{"path": "/", "free_gib": 2}],
            },
            "ssh": {
                "authorised_keys": {"operator": [_lab["operator_key"]]},
                "callers": ["tag:operator"],
            },
            "firewall": {
                # Under emulation one login took 49 seconds.
                "rollback_seconds": 300,
                "openings": [
                    {
                        # The one container port a neighbour may reach; the drill publishes others
                        # that are not declared, and they must stay shut.
                        "port": 8088,
                        "interface": "eth1",
                        "sources": [_lan],
                        "container": True,
                        "reason": "container declared for the LAN",
                    }
                ],
            },
            "docker": {
                "source": "distribution",
                # The resolver that the lab's virtual network cards bring along.
                "dns": ["10.0.2.3"],
                "networks": [{"name": "sealed-net", "tier": "T1", "subnets": ["fd99:8::/64"]}],
            },
            "tailnet": {
                "control_server": _lab["headscale"]["url"],
                "repository": {
                    "url": _lab["tailscale"]["repository_url"],
                    "key_url": _lab["tailscale"]["key_urls"][_codename],
                    "suite": _codename,
                    "components": [_lab["tailscale"]["component"]],
                },
                "tags": ["tag:rack"],
                "other_tags": ["tag:operator", "tag:guest"],
            },
            "storage": {
                "mounts": [
                    {
                        "name": "nas",
                        "server": "10.77.0.30",
                        "export": "/srv/holdfast",
                        "path": "/mnt/nas",
                        # Under emulation the first mount took longer than the default.
                        "timeout_seconds": 150,
                    }
                ],
                "models": [
                    {
                        "name": "tiny",
                        "source": "/mnt/nas/models/tiny.gguf",
                        "sha256": _lab["downloads"]["model"]["sha256"],
                        "size_mib": 1,
                        "filename": "tiny.gguf",
                    }
                ],
            },
            "floor": {
                "release": {"version": _lab["versions"]["llama"], **_lab["downloads"]["llama"]},
                "model": "tiny",
                "callers": ["tag:operator"],
                "context_tokens": 256,
                "threads": 2,
                "memory_max_mib": 512,
            },
            "services": [
                {
                    # A container that the guest alone may call; the drill publishes it.
                    "name": "visitors",
                    "unit": "docker.service",
                    "user": "root",
                    "tier": "T4",
                    "listens": [
                        {
                            "port": 8085,
                            "scope": "tailnet",
                            "callers": ["tag:guest"],
                            "container": True,
                        }
                    ],
                },
                {
                    "name": "sealed",
                    "unit": "docker.service",
                    "user": "root",
                    "tier": "T1",
                    "network": "sealed-net",
                    "listens": [{"port": 8089, "container": True}],
                },
            ],
            "backup": {
                "restic": {
                    "version": _lab["versions"]["restic"],
                    **_lab["downloads"]["restic_program"],
                },
                "repositories": [
                    {
                        "name": "nas",
                        "kind": "path",
                        "path": "/mnt/nas/backup/rack",
                        "password": "RESTIC_NAS_PASSWORD",
                    },
                    {
                        "name": "offsite",
                        "kind": "rest",
                        "url": _lab["offsite"]["url"] + "holdfast",
                        "user": _lab["offsite"]["user"],
                        "user_password": "OFFSITE_USER_PASSWORD",
                        "password": "RESTIC_OFFSITE_PASSWORD",
                        "append_only": True,
                    },
                ],
                "paths": [{"path": "/srv/data", "backup": "state"}],
            },
        },
    )
]
