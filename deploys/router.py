"""Routers: addresses for work, each of which reaches what its profile says and nothing else."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import clouds
from holdfast.router import programs
from holdfast.settings import HostSettings
from operations import packages, program, python_environment


@deploy("Routers")
def apply(settings: HostSettings) -> None:
    """Have every declared router at its port."""
    declared = [each for one in settings.routers for each in programs(settings, one)]
    if not declared:
        return
    asked = settings.clouds if any(each.clouds for each in settings.routers) else None
    if asked:
        packages.present(name="Install what LiteLLM needs", packages=python_environment.PACKAGES)
        python_environment.installed(
            name="Install LiteLLM",
            program=clouds.LITELLM,
            lock=clouds.LOCK.read_text(),
            distribution=settings.distribution,
            index=asked.packages,
        )
    packages.present(name="Install the routers' proxy", packages=["haproxy", packages.PYTHON])
    # A port may pass from one to another.
    program.have(what="the routers", programs=declared, together=True)
    if asked:
        python_environment.pruned(
            name="Keep the environment before this one and none older",
            program=clouds.LITELLM,
            lock=clouds.LOCK.read_text(),
            distribution=settings.distribution,
        )
