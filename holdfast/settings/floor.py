"""The settings under ``floor``.

For example::

    "floor": {
        "release": {
            "version": "b7500",
            "url": "https://nas.home.arpa/llama-b7500-bin-ubuntu-x64.tar.gz",
            "sha256": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        },
        "model": "small",
        "callers": ["tag:operator"],
        "threads": 8,
    }
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from holdfast.settings.sources import Artefact
from holdfast.types import Caller, Model, Name, Port, SecretName


class Floor(Model):
    """The fallback model that always answers: llama.cpp on the CPU."""

    release: Artefact
    """An archive with the layout of llama.cpp's releases: one folder with ``llama-server``."""
    model: Name
    """A model declared under ``storage.models``."""
    port: Port = 8080
    scope: Literal["loopback", "tailnet"] = "tailnet"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName = "FLOOR_API_KEY"
    context_tokens: int = Field(default=4096, ge=128)
    threads: int = Field(default=4, ge=1)
    memory_max_mib: int = Field(default=8192, ge=64)
