"""Two machines of a small private site, as a starting point: copy to `inventories/mine.py`.

    cp inventories/example.py inventories/mine.py
    cp .env.example .env && chmod 600 .env      # then fill both in
    holdfast plan inventories/mine.py         # reports errors, connects, changes nothing
    holdfast deploy inventories/mine.py

Only data belongs here. Every key, its unit and its default are in docs/settings.md; a key that is
left out has its default. A name such as FLOOR_API_KEY is the name of a secret in `.env`, never the
secret. Values marked (yours) must be replaced: `holdfast plan` refuses those that could not work.
"""

# What both machines share. A leading underscore keeps pyinfra from taking a list for a group.
_operator = {
    # The user you log in as now, by key, with sudo that asks for no password.
    "ssh_user": "operator",
    "_sudo": True,
}
_home = "192.168.1.0/24"  # (yours) your LAN

# llama.cpp's server for CPUs: one release, by version and checksum, never "latest".
_llama = {
    "version": "b7500",
    "url": (
        "https://github.com/ggml-org/llama.cpp/releases/download/b7500/"
        "llama-b7500-bin-ubuntu-x64.tar.gz"
    ),
    # (yours) Download the archive once, look at it, and write what `sha256sum` prints for it.
    # This is the checksum of nothing (an empty file), so a download is refused until you do.
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
}

# The model that always answers: small enough for the CPU and for a few GiB of memory.
_small_model = {
    "name": "small",
    # (yours) Name a commit in place of this one; /main/ is refused, for it changes under you.
    "source": (
        "https://huggingface.co/Qwen/Qwen2.5-0.5B-Instruct-GGUF/resolve/"
        "0123456789abcdef0123456789abcdef01234567/qwen2.5-0.5b-instruct-q4_k_m.gguf"
    ),
    # (yours) As above: what `sha256sum` prints for the file you downloaded and tried.
    "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "size_mib": 469,
    "filename": "qwen2.5-0.5b-instruct-q4_k_m.gguf",
}

# Nine RTX 3090 in an open frame. The GPUs themselves are not managed yet; the rack is hardened,
# joined to the tailnet, fed by the NAS, backed up, and answers on its CPU.
_rack = {
    **_operator,
    "hostname": "rack",
    "distribution": "debian13",
    # Every physical interface; the firewall treats what comes in here as foreign.
    "interfaces": {"enp5s0": {"role": "lan"}},
    # Where it answers before it has joined the tailnet. Afterwards SSH on the LAN is closed, once
    # a login over the tailnet has succeeded in the same run.
    "lan_address": "192.168.1.40",  # (yours)
    "base": {
        "timezone": "Europe/Berlin",
        # Models, engines and images need room: refuse to start on a disk that is nearly full.
        "disks": [{"path": "/", "free_gib": 40}],
        "hosts": {"nas.home.arpa": "192.168.1.30"},
    },
    "tailnet": {"tags": ["tag:rack"]},
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
            _small_model,
            {
                # Weights that lie on the NAS are copied to local disk and proved by checksum:
                # what is served must not depend on the network.
                "name": "vision",
                "source": "/mnt/nas/models/qwen2.5-vl-7b-q4_k_m.gguf",
                # (yours) What `sha256sum` prints for it on the NAS.
                "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
                "size_mib": 4466,
                "filename": "qwen2.5-vl-7b-q4_k_m.gguf",
            },
        ],
    },
    "floor": {
        "release": _llama,
        "model": "small",
        "threads": 8,
        "memory_max_mib": 4096,
    },
    # One address for private work, which nothing in a request can lead to a cloud: docs/routing.md.
    # A request that no upstream can answer now waits on disk.
    "routers": [
        {
            "name": "work",
            "profile": "private",
            "port": 8200,
            "scope": "tailnet",
            "api_key": "WORK_API_KEY",
            "floor": True,
            "queue": {"entries": 500, "max_age_minutes": 60},
        }
    ],
    # Each container on this network can call the others on it and nothing else: docs/egress.md.
    "docker": {
        "dns": ["192.168.1.1"],  # (yours) your LAN's resolver
        "networks": [{"name": "home", "tier": "T1"}],
    },
    "backup": {
        # Two places, so that neither a dead NAS nor a fire takes everything.
        "repositories": [
            {
                "name": "nas",
                "kind": "path",
                "path": "/mnt/nas/backup/rack",
                "password": "RESTIC_NAS_PASSWORD",
            },
            {
                # Append-only: who takes over the rack still cannot delete what was saved.
                "name": "offsite",
                "kind": "rest",
                "url": "https://backup.example.org:8000/rack",  # (yours)
                "user": "rack",
                "user_password": "OFFSITE_USER_PASSWORD",
                "password": "RESTIC_OFFSITE_PASSWORD",
                "append_only": True,
            },
        ],
        # What the declared services own is saved without being named here.
        "paths": [{"path": "/srv/projects", "backup": "state"}],
    },
}

# One RTX 5090 under a desk. It has no floor and keeps nothing that is not elsewhere.
_workstation = {
    **_operator,
    "hostname": "workstation",
    "distribution": "ubuntu2404",
    "interfaces": {"enp12s0": {"role": "lan"}},
    "lan_address": "192.168.1.41",  # (yours)
    "base": {"timezone": "Europe/Berlin"},
    # Somebody sits at it: SSH on the LAN stays open, but only from the LAN.
    "ssh": {"lan_access": "keep", "lan_sources": [_home]},
    "firewall": {
        # A hole is declared with who may use it and why, or it does not exist.
        "openings": [
            {
                "port": 5353,
                "protocol": "udp",
                "interface": "enp12s0",
                "sources": [_home],
                "reason": "printer discovery",
            }
        ]
    },
    "tailnet": {"tags": ["tag:workstation"]},
}

hosts = [
    ("@rack/rack", _rack),
    ("@rack/workstation", _workstation),
]
