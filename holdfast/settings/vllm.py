"""The settings under ``vllm``.

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


class Engine(Model):
    """One vLLM server: a checkpoint on named cards."""

    name: Name = Field(max_length=24)
    """Its units and its user are called ``holdfast-vllm-NAME`` and ``vllm-NAME``."""
    checkpoint: Name
    """A model declared under ``storage.checkpoints``."""
    task: Literal["generate", "embed"] = "generate"
    chat: bool = True
    """Whether it answers chats, for which its checkpoint needs a chat template. False for a base
    model: its doors then pass `/v1/completions` alone, and nothing else is asked for its proof."""
    cards: list[Name] = []
    """Cards declared under ``gpus.cards``, which share the model (tensor parallel). Empty: the CPU,
    with a lock of vLLM's CPU build."""
    peer_access: bool | None = None
    """Whether its cards read one another's memory. False: by host memory instead
    (NCCL_P2P_DISABLE=1), the cure where cards without NVLink hang. None leaves it to NCCL."""
    port: Port
    scope: Literal["loopback", "tailnet"] = "loopback"
    callers: list[Caller] = []
    """Who on the tailnet may call it; empty: every member."""
    api_key: SecretName
    context_tokens: int = Field(ge=16)
    """Prompt and answer together (--max-model-len)."""
    concurrent_requests: int = Field(default=16, ge=1)
    """Requests that run at once (--max-num-seqs); more wait."""
    utilisation: float = Field(default=0.80, gt=0, le=0.97)
    """Share of each card's memory the engine may take; more than 0.80 needs a reason."""
    utilisation_reason: Sentence | None = Field(default=None, min_length=10, max_length=200)
    """Why this engine may take more than 0.80: what else the card would do with the rest."""
    cache_mib: int | None = Field(default=None, ge=1024, multiple_of=1024)
    """Memory of the KV cache on the CPU, MiB in whole GiB; on cards what the utilisation leaves."""
    kv_dtype: Literal["auto", "fp8"] = "auto"
    """Format of the KV cache (--kv-cache-dtype)."""
    flags: dict[FlagName, bool | int | Figure | Text] = {}
    """Further flags of `vllm serve`, without the leading dashes; False is `--no-` of one."""
    memory_max_mib: int = Field(default=32768, ge=1024)
    """Host memory, MiB."""
    cpus: CpuList | None = None
    """The CPUs it may run on, so that the floor has the others to itself; all when absent."""
    start_seconds: int = Field(default=1800, ge=60, le=14400)
    """How long loading may take until the first completion, seconds."""
    stall_seconds: int = Field(default=300, ge=60, le=3600)
    """An engine that has requests and counts no tokens for so long is ended and started again."""


class Vllm(Model):
    """vLLM: one pinned environment, and an engine for each model."""

    lock: ControllerPath | None = None
    """Requirements with hashes; None: `locks/vllm.txt`, which the project is tested with."""
    packages: Url | None = None
    """A mirror of the Python package index; PyPI when absent."""
    engines: list[Engine] = Field(min_length=1)
