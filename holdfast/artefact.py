"""The paths of pinned downloads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from facts.places import PROGRAMS
from holdfast.settings import Artefact

Unpack = Literal["tar.gz", "tar.bz2", "bz2", "none"]


def directory(program: str, artefact: Artefact) -> str:
    """The path of this version of ``program`` on a host."""
    return f"{PROGRAMS}/{program}/{artefact.version}"


@dataclass(frozen=True)
class Archive:
    """A pinned download that holds a program; the fields are those of `operations.artefact`."""

    name: str
    artefact: Artefact
    unpack: Unpack = "tar.gz"
    file: str | None = None
    strip_components: int = 0

    @property
    def folder(self) -> str:
        """Its path on a host."""
        return directory(self.name, self.artefact)
