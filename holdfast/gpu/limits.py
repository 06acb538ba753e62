"""Power limits and clocks: the unit's configuration, and whether the cards have the limits."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict

from facts.gpu_limits import SERVICE
from holdfast.host_programs import gpu_limits
from holdfast.host_programs.gpu_limits import Seen, Wanted
from holdfast.sandbox import Directive
from holdfast.service import EVERY_MINUTE, LOGS_NO_STARTS, UNRATIONED, File, Program
from holdfast.settings import Gpus, HostSettings, Service
from holdfast.shipping import path_of

CONFIG = gpu_limits.CONFIG
PROGRAM = path_of(gpu_limits)
TIMER = "holdfast-gpu-limits.timer"

DEVICES = ("char-nvidia", "char-nvidia-frontend", "char-nvidiactl", "char-nvidia-caps")
"""The driver's character devices; the names depend on its version."""


def _declared(gpus: Gpus) -> Iterator[Wanted]:
    for card in gpus.cards:
        if card.role == "compute" and (card.uuid or card.pci_address):
            own = next((one for one in gpus.card_sets if card.name in one.cards), None)
            yield Wanted(
                name=card.name,
                uuid=card.uuid,
                pci_address=card.pci_address,
                power_cap_w=card.power_cap_w,
                clock_max_mhz=card.clock_max_mhz,
                card_set=own.name if own else None,
                mode_caps_w={
                    mode.name: mode.power_caps_w[card.name]
                    for mode in (own.modes if own else [])
                    if card.name in mode.power_caps_w
                },
            )


def declared(gpus: Gpus, modes: Mapping[str, str]) -> list[Wanted]:
    """The cards whose limits the unit sets: those of this machine with an identity.

    ``modes`` maps sets of cards to their active modes.
    """
    return [card.in_force(modes) for card in _declared(gpus)]


def config(gpus: Gpus) -> str:
    """The program's configuration."""
    return json.dumps([asdict(card) for card in _declared(gpus)], indent=1) + "\n"


def driver_access() -> list[Directive]:
    """Relaxations of the sandbox for a root service that uses the driver."""
    return [
        Directive("PrivateDevices", "no", "the driver is reached through its device files"),
        *(Directive("DeviceAllow", f"{name} rw", "the same") for name in DEVICES),
        Directive("ProcSubset", "all", "the driver describes itself in /proc/driver"),
        Directive("PrivateUsers", "no", "the driver serves the machine's own root alone"),
    ]


def programs(settings: HostSettings) -> list[Program]:
    """What sets the limits at boot, with the driver, and every minute."""
    if settings.gpus is None:
        return []
    return [
        Program(
            service=Service(name="gpu-limits", unit=SERVICE, user="root", tier="T1"),
            description="Holdfast: power limits and clocks of the cards",
            kind="oneshot",
            source=gpu_limits,
            command=(PROGRAM,),
            files=(File(CONFIG, config(settings.gpus)),),
            runtime="holdfast/gpu-limits",
            start_seconds=300,
            at_boot=True,
            # The second starts it again when the driver was unloaded and loaded again.
            wanted_by=("multi-user.target", "nvidia-persistenced.service"),
            order=(
                Directive(
                    *("After", "nvidia-persistenced.service"),
                    "Limits are kept only while a client keeps the driver loaded.",
                ),
                UNRATIONED,
            ),
            tuned=(
                Directive(
                    *("RuntimeDirectoryPreserve", "yes"),
                    "A later run needs the record of locked clocks.",
                ),
                LOGS_NO_STARTS,
            ),
            isolated=True,
            relaxed=(
                *driver_access(),
                # NV_IS_SUSER() of the kernel module is capable(CAP_SYS_ADMIN).
                Directive(
                    *("CapabilityBoundingSet", "CAP_SYS_ADMIN"),
                    "the driver asks for it before it sets a limit",
                ),
            ),
            # A driver reload or a card reset removes a limit without a notification.
            timer=EVERY_MINUTE,
        )
    ]


def not_held(
    wanted: Sequence[Wanted], cards: Sequence[Seen], locked: Mapping[str, int]
) -> Iterator[str]:
    """Names of the cards that are not as declared; ``locked`` maps UUID to MHz.

    A card with an undeclared locked clock is named by its UUID.
    """
    undeclared = dict(locked)
    for card in wanted:
        seen = gpu_limits.matching(card, cards)
        if seen is None:
            yield card.name
            continue
        clock = undeclared.pop(seen.uuid, None)
        if gpu_limits.has_lost_its_limit(card, seen) or clock != card.clock_max_mhz:
            yield card.name
    yield from undeclared
