"""Compare the declared cards with the machine; a difference stops the run."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import registry
from holdfast.settings import HostSettings
from operations import gpu_acceptance


@deploy("Cards on the bus")
def before_driver(settings: HostSettings) -> None:
    """Check the cards on the PCI bus, which needs no driver."""
    if settings.gpus is not None:
        gpu_acceptance.accepted(
            name="Find the declared cards on the bus",
            gpus=settings.gpus,
            moment="before_driver",
            memory_claimed=True,
        )


@deploy("Cards as driven")
def before_caps(settings: HostSettings) -> None:
    """Check everything except the power limits, which are set next."""
    if settings.gpus is not None:
        gpu_acceptance.accepted(
            name="Find the declared cards well",
            gpus=settings.gpus,
            moment="before_caps",
            memory_claimed=bool(registry.gpu_claims(settings)),
        )


@deploy("Cards accepted")
def after_driver(settings: HostSettings) -> None:
    """Check everything, including the power limits."""
    if settings.gpus is not None:
        gpu_acceptance.accepted(
            name="Accept the cards as declared",
            gpus=settings.gpus,
            moment="after_driver",
            memory_claimed=bool(registry.gpu_claims(settings)),
        )
