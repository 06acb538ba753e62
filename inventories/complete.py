"""One rack that carries everything Holdfast has: to copy parts from, not to start with.

`make accept-plans` records what a deploy of it does on every distribution. Data only; a value
marked (yours) must be replaced before anything can be deployed.
"""

_home = "192.168.1.0/24"  # (yours) your LAN
_checksum = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"  # (yours)
_rtx3090 = {"device": "2204", "vram_mib": 24576, "power_cap_w": 280}

_rack = {
    "ssh_user": "operator",
    "_sudo": True,
    "hostname": "rack",
    "distribution": "debian13",
    "interfaces": {"enp5s0": {"role": "lan"}, "enp6s0": {"role": "storage"}},
    "lan_address": "192.168.1.60",  # (yours)
    "base": {
        "timezone": "Europe/Berlin",
        "ntp_servers": ["192.168.1.1"],
        "disks": [{"path": "/", "free_gib": 200}],
        "hosts": {"nas.home.arpa": "192.168.1.30"},
    },
    "ssh": {
        "authorised_keys": {
            "operator": [  # (yours)
                "ssh-ed25519"
                " AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f you@desk"
            ]
        },
        "callers": ["tag:operator"],
    },
    "firewall": {
        "openings": [
            {
                "port": 5353,
                "protocol": "udp",
                "interface": "enp5s0",
                "sources": [_home],
                "reason": "printer discovery",
            }
        ]
    },
    "docker": {
        "dns": ["192.168.1.1"],  # (yours) your LAN's resolver
        "networks": [
            {"name": "home", "tier": "T1", "subnets": ["fd99:8::/64"]},
            {"name": "agents", "tier": "T4", "clouds": [{"name": "api.house.example"}]},
        ],
    },
    "tailnet": {"tags": ["tag:rack"], "other_tags": ["tag:operator"]},
    "storage": {
        "mounts": [
            {
                "name": "nas",
                "server": "nas.home.arpa",
                "export": "/volume1/holdfast",
                "path": "/mnt/nas",
            }
        ],
        "models": [
            {
                "name": "small",
                "source": "/mnt/nas/models/small.gguf",
                "sha256": _checksum,
                "size_mib": 469,
                "filename": "small.gguf",
            }
        ],
        "checkpoints": [
            {
                "name": "llama-8b",
                "source": "/mnt/nas/checkpoints/llama-8b",
                "sha256": _checksum,
                "size_mib": 15400,
                # (yours) The model's config.json and index, on the controller.
                "description": "tests/unit/data/fit/llama-3.1-8b",
            }
        ],
    },
    "gpus": {
        "cards": [
            # (yours) `holdfast gpus` shows them.
            {
                **_rtx3090,
                "name": "left",
                "pci_address": "0000:01:00.0",
                "uuid": "GPU-00000000-0000-4000-8000-000000000001",
            },
            {
                **_rtx3090,
                "name": "right",
                "pci_address": "0000:21:00.0",
                "uuid": "GPU-00000000-0000-4000-8000-000000000002",
            },
            {
                **_rtx3090,
                "name": "always",
                "pci_address": "0000:41:00.0",
                "uuid": "GPU-00000000-0000-4000-8000-000000000003",
            },
        ],
        "machine_w": 250,
        "power_supplies": [{"name": "psu", "watts": 2000}],
        # Two cards take turns; the third serves in every mode.
        "card_sets": [
            {
                "name": "desk",
                "cards": ["left", "right"],
                "default": "agent",
                "modes": [
                    {"name": "agent", "services": ["chat"]},
                    {"name": "creative", "services": ["painter"], "power_caps_w": {"left": 340}},
                ],
            }
        ],
    },
    "floor": {
        "release": {
            "version": "b7500",
            "url": (
                "https://github.com/ggml-org/llama.cpp/releases/download/b7500/"
                "llama-b7500-bin-ubuntu-x64.tar.gz"
            ),
            "sha256": _checksum,
        },
        "model": "small",
        "callers": ["tag:operator"],
        "memory_max_mib": 4096,
    },
    "vllm": {
        "engines": [
            {
                "name": "chat",
                "checkpoint": "llama-8b",
                "cards": ["left", "right"],
                "port": 8100,
                "api_key": "CHAT_API_KEY",
                "context_tokens": 32768,
            },
            {
                "name": "client",
                "checkpoint": "llama-8b",
                "cards": ["always"],
                "port": 8101,
                "scope": "tailnet",
                "callers": ["tag:operator"],
                "api_key": "CLIENT_ENGINE_API_KEY",
                "context_tokens": 4096,
            },
        ]
    },
    "clouds": {
        "providers": [
            {
                "name": "cheap",
                "base_url": "https://api.house.example/v1",
                "model": "their-big-one",
                "api_key": "CHEAP_CLOUD_KEY",
                "input_usd": 0.5,
                "output_usd": 1.5,
            },
            {
                "name": "clever",
                "api": "anthropic",
                "base_url": "https://api.anthropic.com",
                "model": "claude-x",
                "api_key": "CLEVER_CLOUD_KEY",
                "input_usd": 3.0,
                "output_usd": 15.0,
            },
        ]
    },
    "routers": [
        {
            "name": "work",
            "profile": "private",
            "port": 8200,
            "scope": "tailnet",
            "callers": ["tag:operator"],
            "api_key": "WORK_API_KEY",
            "engines": ["chat"],
            "floor": True,
            "queue": {"entries": 500, "max_age_minutes": 60},
        },
        {
            "name": "client",
            "profile": "client",
            "port": 8201,
            "api_key": "CLIENT_API_KEY",
            "engines": ["client"],
        },
        {
            "name": "home",
            "profile": "personal",
            "port": 8210,
            "engines": ["chat"],
            "floor": True,
            "clouds": ["cheap", "clever"],
            "keys": [
                {
                    "name": "alice",
                    "api_key": "ALICE_KEY",
                    "clouds": ["cheap", "clever"],
                    "budget_usd": 20.0,
                },
                # Local work only.
                {"name": "child", "api_key": "CHILD_KEY"},
            ],
        },
        {
            "name": "far",
            "profile": "cloud",
            "port": 8211,
            "clouds": ["clever"],
            "keys": [
                {
                    "name": "agent",
                    "api_key": "AGENT_KEY",
                    "clouds": ["clever"],
                    "budget_usd": 1.0,
                    "period": "day",
                }
            ],
        },
    ],
    "services": [
        {
            "name": "painter",
            "unit": "comfyui.service",
            "user": "painter",
            "tier": "T1",
            "listens": [{"port": 8188}],
            "gpu_mib": 16000,
            "cards": ["left", "right"],
            "health": {"url": "http://127.0.0.1:8188/queue", "contains": "queue_running"},
            "idle": {"url": "http://127.0.0.1:8188/queue", "contains": '"queue_running": []'},
        },
        {
            "name": "photos",
            "container": {
                "image": f"docker.io/photoprism/photoprism@sha256:{_checksum}",  # (yours)
                "environment": {
                    "PHOTOPRISM_SITE_CAPTION": "Photos: 100 % ours",
                    "PHOTOPRISM_ADMIN_PASSWORD_FILE": "/run/secrets/admin",
                },
                "secrets": {"admin": "PHOTOS_ADMIN_PASSWORD"},
                "mounts": {"/srv/photos": "/photoprism"},
            },
            "tier": "T1",
            "network": "home",
            "listens": [{"port": 2342, "scope": "tailnet"}],
            "memory_max_mib": 4096,
            "data": [{"path": "/srv/photos", "backup": "state"}],
            "health": {
                "url": "http://127.0.0.1:2342/api/v1/status",
                "contains": "operational",
                "timeout_seconds": 120,
            },
        },
        {
            "name": "notes",
            "python": {
                "lock": "locks/litellm.txt",  # (yours) one that has your program
                "command": [
                    *("python", "-m", "aiohttp.web", "notes:app"),
                    *("-U", "/run/holdfast/holdfast-tenant-notes/http.sock"),
                ],
                "environment": {"NOTES": "/srv/notes"},
                "secrets": {"key": "NOTES_KEY"},
            },
            "tier": "T1",
            "listens": [{"port": 8300, "scope": "tailnet", "callers": ["tag:operator"]}],
            "memory_max_mib": 512,
            "data": [{"path": "/srv/notes", "backup": "state"}],
            "health": {"url": "http://127.0.0.1:8300/health", "contains": "ok"},
        },
    ],
    "backup": {
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
                "url": "https://backup.house.example:8000/rack",  # (yours)
                "user": "rack",
                "user_password": "OFFSITE_USER_PASSWORD",
                "password": "RESTIC_OFFSITE_PASSWORD",
                "append_only": True,
            },
        ],
        "paths": [{"path": "/srv/projects", "backup": "state"}],
    },
}

hosts = [("@rack/rack", _rack)]
