"""The programs of each capability: install, configure and run them."""

from __future__ import annotations

from collections.abc import Sequence

from pyinfra.api.deploy import deploy

from deploys import engines
from holdfast.capabilities import CAPABILITIES, ENGINES
from holdfast.service.capability import Capability
from holdfast.settings import HostSettings
from operations import program


def apply(settings: HostSettings, only: Sequence[Capability] = CAPABILITIES) -> None:
    """Install, configure and start the programs of every capability, in the order of the list.

    Engines take minutes to load. They are started here, and `deploys.engines.settle` waits for
    them.
    """
    for capability in only:
        if capability is ENGINES:
            engines.apply(settings=settings)
        elif capability.programs(settings):
            _have(capability, settings)


def _have(capability: Capability, settings: HostSettings) -> None:
    @deploy(capability.title)
    def have() -> None:
        # A port may move from one program to another.
        program.have(
            what=f"the {capability.title.lower()}",
            programs=capability.programs(settings),
            together=True,
        )

    have()
