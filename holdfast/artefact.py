"""Pinned downloads, by name: where one lies."""

from __future__ import annotations

from facts.places import PROGRAMS
from holdfast.settings import Artefact


def directory(program: str, artefact: Artefact) -> str:
    """Where this version of ``program`` lies on a host."""
    return f"{PROGRAMS}/{program}/{artefact.version}"
