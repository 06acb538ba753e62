"""Assertions for every program behind doors."""

from __future__ import annotations

from testinfra.host import Host

from holdfast.gpu import modes
from holdfast.settings import LOOPBACK_OF, HostSettings, Tier


def listens_only_as_declared(host: Host, port: int, scope: str, tier: Tier = "T1") -> None:
    """Assert that the port listens on its tier's loopback, and on the tailnet if in its scope."""
    lines = host.check_output(f"ss -Hltn 'sport = :{port}'").splitlines()
    expected = {f"{LOOPBACK_OF[tier]}%lo:{port}"}
    if scope == "tailnet":
        expected.add(f"*%tailscale0:{port}")
    assert {line.split()[3] for line in lines} == expected


def engine_is_wanted(host: Host, settings: HostSettings, name: str) -> bool:
    """Whether an engine must run now: it belongs to the active mode, or to no mode."""
    targets = modes.targets_of(settings, name)
    return not targets or host.run(f"systemctl --quiet is-active {' '.join(targets)}").rc == 0
