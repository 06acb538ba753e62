"""The settings under the key of an engine server, such as ``vllm``.

For example::

    "vllm": {
        "lock": "~/locks/vllm.txt",
        "engines": [
            {
                "name": "chat",
                "checkpoint": "llama-8b",
                "cards": ["left", "right"],
                "port": 8100,
                "api_key": "CHAT_API_KEY",
                "context_tokens": 32768,
                "flags": {"max-num-batched-tokens": 4096, "enable-prefix-caching": False},
                "cpus": "4-31",
            }
        ],
    }
"""

from __future__ import annotations

from pathlib import Path
from pkgutil import iter_modules
from typing import Literal

from pydantic import Field

from holdfast.types import (
    Caller,
    ControllerPath,
    CpuList,
    Figure,
    FlagName,
    Model,
    Name,
    Port,
    SecretName,
    Sentence,
    Text,
    Url,
)

SERVERS = tuple(
    module.name for module in iter_modules([str(Path(__file__).parents[1] / "servers")])
)
"""The keys of engine servers: the modules of `holdfast.servers`, which are not imported."""


class Engine(Model):
    """One engine: a checkpoint on named cards, served by the program of its key."""

    name: Name = Field(max_length=24)
    """Its units are ``holdfast-SERVER-NAME`` and its user is ``SERVER-NAME``; SERVER is the key."""
    checkpoint: Name
    """A model declared under ``storage.checkpoints``."""
    task: Literal["generate", "embed"] = "generate"
    chat: bool = True
    """Whether it answers chats, for which its checkpoint needs a chat template. False for a base
    model: then its doors forward `/v1/completions` only, and tests of the engine use only that."""
    cards: list[Name] = []
    """Cards declared under ``gpus.cards``, which share the model (tensor parallel). Empty: the CPU,
    with a lock for a CPU build."""
    peer_access: bool | None = None
    """Whether its cards read each other's memory. False: they exchange data through host memory
    (NCCL_P2P_DISABLE=1), for cards without NVLink that hang. None: NCCL decides."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName
    context_tokens: int = Field(ge=16)
    """Prompt and answer together."""
    concurrent_requests: int = Field(default=16, ge=1)
    """Requests that run at once; further ones wait."""
    utilisation: float = Field(default=0.80, gt=0, le=0.97)
    """Share of each card's memory that the engine may use; more than 0.80 needs a reason."""
    utilisation_reason: Sentence | None = Field(default=None, min_length=10, max_length=200)
    """Why this engine may use more than 0.80, and what else uses the card."""
    cache_mib: int | None = Field(default=None, ge=1024, multiple_of=1024)
    """Memory of the KV cache on the CPU, MiB in whole GiB; on cards the rest of the utilisation."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Format of the KV cache."""
    flags: dict[FlagName, bool | int | Figure | Text] = {}
    """Further flags of the server, without the leading dashes; False switches one off."""
    memory_max_mib: int = Field(default=32768, ge=1024)
    """Host memory, MiB."""
    cpus: CpuList | None = None
    """The CPUs that it may use, so that the others are free for the floor; default: all."""
    start_seconds: int = Field(default=1800, ge=60, le=14400)
    """Limit for loading until the first completion, seconds."""
    stall_seconds: int = Field(default=300, ge=60, le=3600)
    """An engine that has requests but produces no tokens for this long is killed and restarted."""


class EngineServer(Model):
    """A program that serves models: one pinned environment, and an engine for each model."""

    lock: ControllerPath | None = None
    """Requirements with hashes; None: the tested one in `locks/`, where the server has one."""
    packages: Url | None = None
    """A mirror of the Python package index; default: PyPI."""
    engines: list[Engine] = Field(min_length=1)
