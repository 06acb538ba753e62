"""What every program behind doors promises, whichever it is."""

from __future__ import annotations

from testinfra.host import Host

from holdfast.gpu import modes
from holdfast.settings import LOOPBACK_OF, HostSettings, Tier


def listens_only_as_declared(host: Host, port: int, scope: str, tier: Tier = "T1") -> None:
    """Assert that the port is open on its tier's loopback address, and on the tailnet where that is
    its scope."""
    lines = host.check_output(f"ss -Hltn 'sport = :{port}'").splitlines()
    expected = {f"{LOOPBACK_OF[tier]}%lo:{port}"}
    if scope == "tailnet":
        expected.add(f"*%tailscale0:{port}")
    assert {line.split()[3] for line in lines} == expected


def engine_is_wanted(host: Host, settings: HostSettings, name: str) -> bool:
    """Whether an engine is to run now: it is in the mode in force, or in none."""
    targets = modes.targets_of(settings, name)
    return not targets or host.run(f"systemctl --quiet is-active {' '.join(targets)}").rc == 0
