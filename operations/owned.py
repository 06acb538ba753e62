"""Remove what Holdfast has on a host and the inventory no longer declares."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from fnmatch import fnmatch

from pyinfra import host as this_host
from pyinfra import logger
from pyinfra.api import FunctionCommand, StringCommand, operation
from pyinfra.api.host import Host
from pyinfra.api.state import State

from facts.owned import OwnedFiles
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings
from operations import login, units
from operations.refusal import stop


@operation()
def only(
    settings: HostSettings, capabilities: Sequence[Capability]
) -> Generator[StringCommand | FunctionCommand, None, None]:
    """Remove each file that one of ``capabilities`` owns and ``settings`` do not declare; units
    among them are stopped and disabled first. Models, caches, queues and other data stay, and are
    named. The tailnet is removed only after a new login over the LAN.

    For example::

        owned.only(name="Remove old services", settings=settings, capabilities=REMOVED)
    """
    patterns = [pattern for each in capabilities for pattern in each.owns]
    present: list[str] = this_host.get_fact(OwnedFiles, patterns=patterns)
    stray: list[str] = []
    for capability in capabilities:
        declared = capability.declared(settings)
        found = [
            path
            for path in present
            if path not in declared and any(fnmatch(path, own) for own in capability.owns)
        ]
        stray += found
        if not found or declared:
            continue
        if capability.carries_login:
            if not _came_by_the_lan(settings):
                yield stop(
                    "The tailnet is no longer declared, but it stays, because this run logged in"
                    " through it: write the LAN's address as lan_address and as ssh_hostname, and"
                    " run again."
                )
                return
            yield FunctionCommand(_log_in_over_the_lan, [], {})
        if capability.keeps:
            logger.warning(
                f"{this_host.print_prefix}{capability.title} is no longer declared and is removed;"
                f" its data stays: {' '.join(capability.keeps)}"
            )
        if capability.first:
            yield StringCommand(capability.first)
        # A unit is gone with its package.
        for unit in capability.stops:
            there = f"systemctl cat {unit} >/dev/null 2>&1"
            yield StringCommand(f"! {there} || systemctl disable --now {unit}")
    yield from units.without(sorted(set(stray)))


def _came_by_the_lan(settings: HostSettings) -> bool:
    by_name = getattr(this_host.connector, "via", None) == "tailnet"
    return not by_name or settings.ssh_hostname == settings.lan_address is not None


def _log_in_over_the_lan(state: State, host: Host) -> bool:
    return login.attempt(host, "lan", "the tailnet stays until a login over the LAN succeeds")
