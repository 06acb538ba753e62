"""Routers of a drill's rack: found by their ports, and waited for until they know what is up."""

from __future__ import annotations

from holdfast.router import RouterNames
from holdfast.settings import HostSettings
from tests.lab.machine import Machine


def at(settings: HostSettings, port: int) -> RouterNames:
    """The declared router at a port."""
    return next(RouterNames(each) for each in settings.routers if each.port == port)


def wait_until_told(rack: Machine, names: RouterNames, server: str, *, up: bool) -> None:
    """Wait until a router's own checks see ``server`` (backend/server) as it is."""
    told = (
        "journalctl --output=cat"
        f" _SYSTEMD_INVOCATION_ID=$(systemctl show -P InvocationID {names.doors[0].service})"
        f" | grep '{server} is' | tail -n 1 | grep -q 'is DOWN'"
    )
    rack.wait_until_succeeds(f"{'!' if up else ''} ({told})", timeout_seconds=60)
