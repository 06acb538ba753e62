"""What one inventory can say and one drill must show: the rows that a report is ordered by."""

from __future__ import annotations

ROWS = dict(
    enumerate(
        (
            "bare OS to site in one command",
            "NVIDIA driver, flavour by GPU",
            "GPU inventory and acceptance",
            "power caps persisted and read back",
            "container toolkit, CDI",
            "UFW default deny, IPv4 and IPv6",
            "DOCKER-USER, IPv4 and IPv6",
            "Tailscale the only way in",
            "vLLM systemd units",
            "fit planner",
            "full replace with rollback",
            "GPU modes",
            "llama.cpp floor",
            "routers by profile",
            "tiers enforced by the kernel",
            "NAS mounts",
            "restic, restore, freshness of both",
            "watchdog to a phone",
            "metrics, dashboards, alerts",
            "Netdata, traces",
            "MCP server and vector store",
            "index every four hours",
            "buckets per project",
            "throw-away trainers",
            "Proxmox passthrough, private/public split",
            "Ollama, SGLang, ExLlama",
            "agents and pages (Hermes, Open WebUI)",
            "studio tenants (ComfyUI, audio, Whisper, OpenVLA)",
            "weekly benchmarks",
            "several hosts on an existing engine",
            "offline rebuild",
            "reference inventories, complete",
            "plan, verify, drift, doctor, status, init",
            "molecule, testinfra, pre-merge CI",
        ),
        start=1,
    )
)
"""Number -> name."""

ROWS_OF_FILES = {
    "base": (1,),
    "hardening": (1,),
    "sandbox": (1,),
    "services": (1,),
    "ssh": (1, 8),
    "firewall": (6, 7),
    "docker": (7,),
    "egress": (15,),
    "tailnet": (8,),
    "gpu": (3, 4, 5),
    "gpu_modes": (12,),
    "engines": (9,),
    "floor": (13,),
    "router": (14, 15),
    "clouds": (14,),
    "ledger": (14,),
    "storage": (16,),
    "backup": (17,),
}
"""File of host tests -> rows."""
