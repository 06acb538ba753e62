"""Remove what the inventory no longer declares, before a new service needs its port or card."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import owned as own
from holdfast.settings import HostSettings
from operations import owned


@deploy("Removal")
def apply(settings: HostSettings) -> None:
    """Stop and remove every service of ours that the inventory does not declare; its data stays."""
    owned.only(
        name="Remove what the inventory no longer declares",
        settings=settings,
        capabilities=own.REMOVED,
    )
