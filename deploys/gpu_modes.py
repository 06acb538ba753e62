"""Modes: sets of cards that serve one purpose at a time, and the command that switches them."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.gpu_modes import GREETING, RECORDS, UNDO
from holdfast.gpu import modes
from holdfast.host_programs import mode
from holdfast.settings import HostSettings
from operations import gpu_modes, host_files, program, units
from operations.host_files import HostFile
from operations.units import Unit


@deploy("GPU modes")
def declare(settings: HostSettings) -> None:
    """Activate one mode of each set of cards, before their limits, which depend on it."""
    sets = modes.sets(settings)
    unit_files = modes.units(settings)
    kept = [f"{modes.PRESENT}/{card_set.name}" for card_set in sets]
    if sets:
        kept += [modes.PROGRAM, modes.CONFIG, RECORDS, GREETING, UNDO]
        kept += unit_files
    gpu_modes.only(name="Have no other mode", declared=kept)
    if not sets:
        return
    program.place(
        what="the modes",
        programs=[modes.undo()],
        files=[
            host_files.program(mode),
            HostFile(modes.CONFIG, modes.config(settings)),
            HostFile(RECORDS, modes.records(settings)),
            HostFile(GREETING, modes.greeting(), mode="755"),
            *(HostFile(path, text) for path, text in unit_files.items()),
        ],
    )
    gpu_modes.in_force(
        name="Have one mode in force", card_sets=sets, services=modes.service_units(settings)
    )


@deploy("GPU modes, their services")
def settle(settings: HostSettings) -> None:
    """Run the declared services of the active mode, and stop those of other modes."""
    found = [
        Unit(service.unit, along_with=targets)
        for service in settings.services
        if not service.is_tenant and (targets := modes.targets_of(settings, service.name))
    ]
    if found:
        units.settle(name="Run the services of the mode", units=found)
