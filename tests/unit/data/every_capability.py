"""A rack that carries every capability at once, so that a test can look at every unit of ours."""

from pathlib import Path

from tests.unit.site_data import SHA256, good

_rack = good()["rack"]
_rack["docker"] = {}
_rack["gpus"] = {
    "cards": [
        {
            "name": "serves",
            "uuid": "GPU-00000000-0000-0000-0000-000000000001",
            "pci_address": "0000:01:00.0",
            "device": "2204",
            "vram_mib": 24576,
            "power_cap_w": 250,
        },
        {
            "name": "guest",
            "pci_address": "0000:02:00.0",
            "device": "2204",
            "vram_mib": 24576,
            "role": "passthrough",
        },
    ],
}
_rack["storage"]["checkpoints"] = [
    {
        "name": "tiny",
        "source": "/mnt/nas/models/tiny",
        "sha256": SHA256,
        "size_mib": 10,
        "description": str(Path("tests/unit/data/fit/qwen3-0.6b")),
    }
]
_rack["vllm"] = {
    "engines": [
        {
            "name": "chat",
            "checkpoint": "tiny",
            "cards": ["serves"],
            "port": 8100,
            "scope": "tailnet",
            "api_key": "WORK_KEY",
            "context_tokens": 4096,
        }
    ]
}
_rack["clouds"] = {
    "providers": [
        {
            "name": "one",
            "base_url": "https://one.example/v1",
            "model": "big",
            "api_key": "ONE_KEY",
            "input_usd": 1.0,
            "output_usd": 2.0,
        }
    ]
}
_alice = {"name": "alice", "api_key": "ALICE_KEY", "clouds": ["one"], "budget_usd": 5.0}
_rack["routers"] = [
    {
        "name": "work",
        "profile": "private",
        "port": 8200,
        "api_key": "ROUTER_KEY",
        "floor": True,
        "queue": {},
    },
    {"name": "home", "profile": "personal", "port": 8201, "clouds": ["one"], "keys": [_alice]}
    | {"floor": True},
]

racks = [("@rack/rack", _rack)]
