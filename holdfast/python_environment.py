"""Locked Python environments, by name: where one lies, and what pins the installer itself."""

from __future__ import annotations

import hashlib
from pathlib import Path

from facts.places import PROGRAMS

UV_LOCK = Path(__file__).resolve().parent.parent / "locks" / "uv.txt"
"""The installer, by hash."""


def digest(lock: str, distribution: str) -> str:
    """The checksum that an environment is known by.

    ``lock`` is the text of requirements with hashes; ``distribution`` is the host's, because
    another release has another interpreter.
    """
    return hashlib.sha256(f"{distribution}\n{lock}".encode()).hexdigest()


def directory(program: str, lock: str, distribution: str) -> str:
    """Where the environment of ``lock`` lies on a host."""
    return f"{PROGRAMS}/{program}/{digest(lock, distribution)[:12]}"
