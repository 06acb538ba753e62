"""Every program of ours on a host, from the capabilities."""

from __future__ import annotations

from facts.places import CREDENTIALS, SYSTEM
from holdfast import (
    backup,
    egress,
    firewall,
    integrity,
    ssh,
    storage,
    tailnet,
    tailnet_membership,
    tailnet_rules,
)
from holdfast.capabilities import CAPABILITIES
from holdfast.gpu import containers, limits
from holdfast.service import Program
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings


def _tailnet(settings: HostSettings) -> list[Program]:
    return [*tailnet_rules.programs(settings), *tailnet_membership.programs(settings)]


_OF_TAILNET = (
    *(tailnet.ENVIRONMENT, tailnet.DROP_IN),
    *(tailnet_rules.RULES, tailnet_membership.PROGRAM),
)

HOUSE: tuple[Capability, ...] = (
    # Every host has these four, so they own nothing that could be removed.
    Capability("Base", programs=lambda _: [integrity.program()]),
    Capability("SSH", programs=lambda _: [ssh.rollback()]),
    Capability("Firewall", programs=lambda _: firewall.programs()),
    Capability("Egress", programs=egress.programs),
    Capability(
        "Tailnet",
        programs=_tailnet,
        owns=(
            *(f"{SYSTEM}/holdfast-tailnet*.*", tailnet_rules.PROGRAM, tailnet_membership.CONFIG),
            *_OF_TAILNET,
        ),
        beside=lambda settings: _OF_TAILNET if settings.tailnet else (),
        stops=("tailscaled.service",),
        keeps=("/var/lib/tailscale",),
        carries_login=True,
    ),
    Capability(
        "GPU limits",
        programs=limits.programs,
        owns=(f"{SYSTEM}/holdfast-gpu-limits.*", limits.CONFIG),
    ),
    Capability(
        "GPU containers",
        programs=containers.programs,
        owns=(f"{SYSTEM}/{containers.SERVICE}",),
    ),
    Capability(
        "Storage",
        programs=storage.programs,
        owns=(f"{SYSTEM}/holdfast-models-verify.*", storage.CHECKSUMS),
    ),
    Capability(
        "Backup",
        programs=backup.programs,
        owns=(
            *(f"{SYSTEM}/{stem}@*.*" for stem in backup.STEMS),
            *(f"{CREDENTIALS}/backup-*", f"{backup.JOBS}/*.json"),
        ),
        keeps=(backup.STATE,),
    ),
)
"""The capabilities that serve no requests; each has a deploy of its own, which places its programs.

The GPU driver is not among them: its programs depend on what the machine is found to have."""


def programs(settings: HostSettings) -> list[Program]:
    """The programs that a host's settings declare, in the order of the capabilities."""
    return [program for each in (*CAPABILITIES, *HOUSE) for program in each.programs(settings)]


def without_network(settings: HostSettings) -> set[str]:
    """The names of the services whose program is isolated, so that their unit has no network."""
    serving = [program for each in CAPABILITIES for program in each.programs(settings)]
    return {program.service.name for program in serving if program.isolated}
