"""Locked Python environments: their paths, and the lock of the installer."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from facts.places import PROGRAMS

UV_LOCK = Path(__file__).resolve().parent.parent / "locks" / "uv.txt"
"""The requirements of the installer (uv), with hashes."""


def digest(lock: str, distribution: str) -> str:
    """The checksum that names an environment.

    ``lock`` is the text of requirements with hashes. ``distribution`` is the host's, because each
    has another interpreter.
    """
    return hashlib.sha256(f"{distribution}\n{lock}".encode()).hexdigest()


def directory(program: str, lock: str, distribution: str) -> str:
    """The path of the environment of ``lock`` on a host."""
    return f"{PROGRAMS}/{program}/{digest(lock, distribution)[:12]}"


@dataclass(frozen=True)
class PythonEnvironment:
    """A locked Python environment that holds a program."""

    name: str
    lock: str
    """The text of requirements with hashes."""
    distribution: str
    """The host's distribution, because each has another interpreter."""
    index: str | None = None
    """The URL of a package index in place of PyPI; the hashes verify its files."""

    @property
    def folder(self) -> str:
        """The path of the environment on a host."""
        return directory(self.name, self.lock, self.distribution)


def is_unhashed(lock: str) -> bool:
    """Whether a requirement of ``lock`` has no hash."""
    return bool(re.search(r"^\w(?!.*(--hash|\\$)).*$", lock, re.MULTILINE))
