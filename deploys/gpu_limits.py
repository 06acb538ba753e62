"""Power caps and clocks: each card always keeps its declared limits."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from facts.places import SYSTEM
from holdfast import alerts
from holdfast.gpu import limits
from holdfast.host_programs import gpu_limits as gpu_limits_program
from holdfast.settings import HostSettings
from operations import gpu_limits, host_files, packages, units
from operations.host_files import HostFile
from operations.units import Unit


@deploy("GPU limits")
def apply(settings: HostSettings) -> None:
    """Install the unit that sets the limits, and stop the run if a card does not have them.

    Expects a loaded driver. A card without a declared limit gets its default.
    """
    gpus = settings.gpus
    if gpus is None:
        return
    packages.present(name="Install what the cards' limits need", packages=[packages.PYTHON])
    unit_files = limits.unit_files()
    host_files.place(
        name="Declare the cards' limits",
        directories=[host_files.CONFIGURATION],
        files=[
            host_files.program(gpu_limits_program),
            HostFile(limits.CONFIG, limits.config(gpus)),
            HostFile(alerts.UNIT_PATH, alerts.notify_unit()),
            *(HostFile(path, text) for path, text in unit_files.items()),
        ],
    )
    # The timer starts, stops and enables the service.
    timer_file = f"{SYSTEM}/{limits.TIMER}"
    units.settle(
        name="Watch the cards' limits",
        units=[Unit(limits.TIMER, restart_after=[timer_file])],
    )
    gpu_limits.held(name="Have every card at its limits", gpus=gpus)
