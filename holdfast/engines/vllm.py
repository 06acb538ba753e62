"""vLLM: its configuration, its variables, and the flags it knows."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from holdfast.engines.server import Server
from holdfast.settings import Engine, Vllm

VERSION = "0.32.0"
"""The version that locks/vllm.txt pins and the flags were read from."""
LOCK = Path(__file__).resolve().parents[2] / "locks" / "vllm.txt"
FLAGS = Path(__file__).with_name("vllm_flags.json")
SAVING = {"quantization", "cpu-offload-gb", "hf-overrides"}
"""Flags by which a model may fit that the planner, which does not count them, would refuse."""
UNCOUNTED = SAVING | {"dtype", "enable-lora", "max-loras", "max-lora-rank", "speculative-config"}
"""Flags that change what fits and that the planner does not count."""
DRAIN_SECONDS = 30
"""How long a stopping engine may finish what it has begun; with 0, vLLM's default, callers get
half an answer with HTTP 200 (field notes 10)."""


class Flag(BaseModel):
    """A flag of `vllm serve`, as its own parser describes it."""

    kind: Literal["switch", "integer", "number", "text"]
    choices: list[str] | None = None


_ONE_SERVER = "an engine is one server on the cards it names"
_PLUGIN = "it would run code that is not pinned"
_PROMPTS = "prompts would stand in the journal"
_DOOR = "callers come through Holdfast's door"

HELD = {
    **dict.fromkeys(("uds", "host", "root-path", "grpc", "grpc-port", "headless"), _DOOR),
    **dict.fromkeys(
        (
            "ssl-keyfile",
            "ssl-certfile",
            "ssl-ca-certs",
            "ssl-cert-reqs",
            "ssl-ciphers",
            "enable-ssl-refresh",
        ),
        _DOOR,
    ),
    **dict.fromkeys(
        (
            *("pipeline-parallel-size", "data-parallel-size", "data-parallel-size-local"),
            *("data-parallel-rank", "data-parallel-start-rank", "data-parallel-address"),
            *("data-parallel-rpc-port", "data-parallel-backend", "data-parallel-hybrid-lb"),
            *("data-parallel-external-lb", "data-parallel-multi-port-external-lb"),
            *("data-parallel-supervisor-port", "prefill-context-parallel-size"),
            *("decode-context-parallel-size", "nnodes", "node-rank", "master-addr", "master-port"),
            *("distributed-executor-backend", "device-ids", "api-server-count"),
            *("kv-transfer-config", "ec-transfer-config", "weight-transfer-config"),
        ),
        _ONE_SERVER,
    ),
    **dict.fromkeys(
        (
            *("middleware", "worker-cls", "worker-extension-cls", "scheduler-cls"),
            *("logits-processors", "tool-parser-plugin", "reasoning-parser-plugin"),
            "io-processor-plugin",
        ),
        _PLUGIN,
    ),
    **dict.fromkeys(
        (
            *("enable-log-requests", "enable-log-outputs", "enable-log-deltas", "log-level"),
            *("logging-config", "log-config-file", "max-log-len"),
        ),
        _PROMPTS,
    ),
    "port": "write the engine's port",
    "api-key": "write the engine's api_key",
    "hf-token": "secrets belong in .env, and an engine has no network",
    "model": "write the engine's checkpoint",
    "tokenizer": "it belongs in the checkpoint, where its checksum is proved",
    "hf-config-path": "it belongs in the checkpoint, where its checksum is proved",
    "tool-server": "an engine has no network",
    "served-model-name": "it is the engine's name, and the checkpoint's",
    "runner": "write the engine's task",
    "convert": "write the engine's task",
    "max-model-len": "write context_tokens",
    "max-num-seqs": "write concurrent_requests",
    "gpu-memory-utilization": "write utilisation",
    "device-memory-utilization": "write utilisation",
    "kv-cache-memory-bytes": "write utilisation",
    "num-gpu-blocks-override": "write utilisation",
    "kv-cache-dtype": "write kv_dtype",
    "tensor-parallel-size": "it is the number of cards",
    "shutdown-timeout": "Holdfast drains an engine before it stops",
    "enable-sleep-mode": "stop the engine instead: asleep it leaks memory",
    "allowed-local-media-path": "a request could read files of this host",
    "allowed-media-domains": "an engine has no network",
}
"""Flags that an inventory may not set, and what to do instead or why."""


@cache
def flags() -> dict[str, Flag]:
    """The flags of the pinned version."""
    known = json.loads(FLAGS.read_text())["flags"]
    return {name: Flag.model_validate(flag) for name, flag in known.items()}


def flag_problem(name: str, value: bool | float | str) -> str | None:
    """Why vLLM would not take ``value`` for the flag ``name``, which it knows; or None."""
    flag = flags()[name]
    fits = {
        "switch": isinstance(value, bool),
        "integer": isinstance(value, int) and not isinstance(value, bool),
        "number": isinstance(value, int | float) and not isinstance(value, bool),
        "text": not isinstance(value, bool),
    }
    if not fits[flag.kind]:
        return f"vLLM takes {'a' if flag.kind != 'integer' else 'an'} {flag.kind} here"
    if flag.choices and str(value) not in flag.choices:
        return f"vLLM takes one of {', '.join(flag.choices)}"
    return None


def configuration(engine: Engine, folder: str, socket: str, batch_tokens: int) -> dict[str, Any]:
    """What `--config` says, by flag without dashes."""
    said: dict[str, Any] = {
        "model": folder,
        # The engine's own name stays when its model is replaced; answers carry the first.
        "served-model-name": [engine.name, engine.checkpoint],
        "uds": socket,
        "runner": "pooling" if engine.task == "embed" else "generate",
        "max-model-len": engine.context_tokens,
        "max-num-seqs": engine.concurrent_requests,
        # Said, because vLLM's own default differs from card to card, and memory with it.
        "max-num-batched-tokens": batch_tokens,
        "kv-cache-dtype": engine.kv_dtype,
        "tensor-parallel-size": max(1, len(engine.cards)),
        "shutdown-timeout": DRAIN_SECONDS,
        # Each door asks every two seconds, and the journal would hold little else.
        "disable-access-log-for-endpoints": "/health,/metrics",
    }
    if engine.cards:
        said["gpu-memory-utilization"] = engine.utilisation
    if engine.peer_access is False:
        # vLLM's own exchange between cards needs it as NCCL's does.
        said["disable-custom-all-reduce"] = True
    return {**said, **engine.flags}


def peer_word(engine: Engine) -> str | None:
    """What a plan says of an engine whose cards may hang one another; None where it says nothing.

    No inventory tells whether a bridge of NVLink joins two cards, so the word stays until somebody
    has said how it is.
    """
    if len(engine.cards) < 2 or engine.peer_access is not None:
        return None
    return (
        f"{', '.join(engine.cards)} share it: without NVLink between them NCCL may hang"
        ". If it does, write peer_access False; once it answers, True"
    )


def lock_of(wanted: Vllm) -> Path:
    """The file that pins the environment."""
    return Path(wanted.lock).expanduser() if wanted.lock else LOCK


def environment(engine: Engine, cache: str) -> dict[str, str]:
    """The variables of an engine; the cards are named by `holdfast.engines.units`."""
    variables = {
        "VLLM_CACHE_ROOT": cache,
        "TRITON_CACHE_DIR": f"{cache}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{cache}/inductor",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        # The unit has a loopback of its own and no other network; ranks meet there.
        "VLLM_HOST_IP": "127.0.0.1",
        "NCCL_SOCKET_IFNAME": "lo",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    if engine.peer_access is False:
        variables["NCCL_P2P_DISABLE"] = "1"
    if engine.cache_mib is not None:
        variables["VLLM_CPU_KVCACHE_SPACE"] = str(engine.cache_mib // 1024)
    return variables


VLLM = Server(
    name="vllm",
    command="vllm serve",
    key_variable="VLLM_API_KEY",
    configuration=configuration,
    environment=environment,
    running_metric="vllm:num_requests_running",
    waiting_metric="vllm:num_requests_waiting",
    progress_metrics=(
        "vllm:generation_tokens_total",
        # A prompt is counted when it has been read; while it is, the cache fills.
        "vllm:prompt_tokens_total",
        "vllm:kv_cache_usage_perc",
    ),
    # Triton and PyTorch compile what launches a kernel, against Python's headers, as they need it.
    packages=("g++", "libnuma1", "python3-dev"),
    engines=lambda settings: settings.vllm.engines if settings.vllm else [],
    lock=lambda settings: lock_of(settings.vllm) if settings.vllm else LOCK,
    index=lambda settings: settings.vllm.packages if settings.vllm else None,
)
