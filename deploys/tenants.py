"""Tenants: what those have left that are no longer declared."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import tenants
from holdfast.settings import HostSettings
from operations import tenants as operations


@deploy("Tenants of before")
def prune(settings: HostSettings) -> None:
    """Remove images and Python environments from which no tenant runs."""
    declared = tenants.programs(settings)
    operations.pruned(
        name="Remove what no tenant runs from",
        images=[program.image for program in declared if program.image],
        environments=[program.python.name for program in declared if program.python],
    )
