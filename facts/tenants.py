"""What tenants run from: container images, and the folders of Python environments."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

from facts import sections
from facts.framed import Framed
from facts.places import PROGRAMS, STATE

TENANT = "holdfast-tenant-"
"""How the names of tenants' units, containers and environments begin."""
RECORD = f"{STATE}/images"
"""The images that Holdfast has pulled, one a line; others are not its own to remove."""


@dataclass(frozen=True)
class SourcesState:
    """What tenants run from on a host.

    Images by name and digest: ``recorded`` by us, and those of the ``wanted`` ones that are there;
    both are empty while the engine does not run. ``environments`` are the names of tenants' folders
    of Python environments.
    """

    recorded: tuple[str, ...] = ()
    present: frozenset[str] = frozenset()
    environments: tuple[str, ...] = ()


class TenantSources(Framed[SourcesState]):
    """What tenants run from. One command."""

    def command(self, wanted: list[str]) -> str:
        """Build the probe for the ``wanted`` images."""
        look = " ".join(
            f"docker image inspect {image} >/dev/null 2>&1 && echo {image};"
            for image in map(shlex.quote, wanted)
        )
        # A query would start a stopped engine, and without it no image can be removed.
        active = "systemctl --quiet is-active docker.service"
        return sections.probe(
            {
                "recorded": f"{active} && cat {RECORD}",
                "present": f"{active} && {{ {look} true; }}",
                "environments": f"ls {PROGRAMS} | grep '^{TENANT}'",
            }
        )

    @staticmethod
    def default() -> SourcesState:
        """Nothing."""
        return SourcesState()

    def process(self, output: list[str]) -> SourcesState:
        """Parse the probe's output."""
        found = sections.answers(output)
        return SourcesState(
            tuple(dict.fromkeys(found["recorded"])),
            frozenset(found["present"]),
            tuple(found["environments"]),
        )
