"""The floor: a small model on the CPU that answers when nothing else does."""

from __future__ import annotations

from pyinfra.api.deploy import deploy

from holdfast import floor
from holdfast.settings import HostSettings
from operations import artefact, packages, program


@deploy("Floor")
def apply(settings: HostSettings) -> None:
    """Install llama.cpp's server, give it the model and the key, and have it answering."""
    declared = floor.program(settings)
    if settings.floor is None or declared is None:
        return
    artefact.installed(
        name="Install llama.cpp",
        program=floor.PROGRAM,
        artefact=settings.floor.release,
        unpack="tar.gz",
        strip_components=1,
    )
    packages.present(name="Install the floor's proxy", packages=["haproxy"])
    program.have(what="the floor", programs=[declared])
