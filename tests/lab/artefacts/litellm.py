"""LiteLLM and what it needs, for one Debian, as a package index that any web server can serve."""

from __future__ import annotations

from pathlib import Path

from holdfast.clouds import LOCK
from holdfast.python_environment import UV_LOCK
from tests.lab.artefacts import store, vllm_cpu

INDEX = vllm_cpu.INDEX
PYTHON = {12: ("3.11", 36), 13: (vllm_cpu.PYTHON, vllm_cpu.NEWEST_GLIBC)}
"""Debian to its interpreter and the minor version of its glibc."""


def build(debian: int) -> store.Entry:
    """The index `simple/`: some 100 MB, once. Raises LabError with pip's words."""
    python, glibc = PYTHON[debian]
    locks = {lock.name: lock.read_text() for lock in (LOCK, UV_LOCK)}

    def make(target: Path) -> str:
        wheels = target / INDEX
        for lock in (UV_LOCK, LOCK):
            vllm_cpu.download(lock, wheels, python, glibc)
        vllm_cpu.index(wheels)
        return python

    return store.stored("litellm", {"python": python, "layout": "1", **locks}, make)
