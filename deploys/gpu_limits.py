"""Power caps and clocks: each card always keeps its declared limits."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast.gpu import limits
from holdfast.settings import HostSettings
from operations import gpu_limits, program


@deploy("GPU limits")
def apply(settings: HostSettings) -> None:
    """Install the unit that sets the limits, and stop the run if a card does not have them.

    Expects a loaded driver. A card without a declared limit gets its default.
    """
    gpus = settings.gpus
    if gpus is None:
        return
    program.have(what="the watch of the cards' limits", programs=limits.programs(settings))
    gpu_limits.held(name="Have every card at its limits", gpus=gpus)
