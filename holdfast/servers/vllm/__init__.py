"""vLLM: its configuration, its variables, its flags, its memory and its benchmark."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from holdfast.completion import COMPLETION_PATH
from holdfast.engines.server import Bench, Flag, Load, Measured, Memory, Server
from holdfast.fit.planner import Card, EngineSettings
from holdfast.settings import Engine

VERSION = "0.32.0"
"""The version that locks/vllm.txt pins and the flags were read from."""
LOCK = Path(__file__).resolve().parents[3] / "locks" / "vllm.txt"
FLAGS = Path(__file__).with_name("flags.json")
SAVING = frozenset({"quantization", "cpu-offload-gb", "hf-overrides"})
UNCOUNTED = SAVING | {"dtype", "enable-lora", "max-loras", "max-lora-rank", "speculative-config"}
COUNTED = {
    "block-size": "block_tokens",
    "enable-prefix-caching": "prefix_caching",
    "enforce-eager": "enforce_eager",
    "async-scheduling": "async_scheduling",
    "language-model-only": "text_only",
    "mamba-ssm-cache-dtype": "state_dtype",
    "max-num-batched-tokens": "max_num_batched_tokens",
}
PROCESSES_BYTES = 2200 * 2**20
"""Three processes: 3.2 GB of them with a cache of 1 GiB and a model of 1 MB (measured)."""
DRAIN_SECONDS = 30
"""With 0, vLLM's default, callers get half an answer with HTTP 200 (field notes 10)."""
_LARGE_CARD_MIB = 70 * 1024
_LARGE_BATCH_TOKENS = 8192
"""vLLM computes batches of 8,192 tokens on cards of 70 GiB and more where nothing is said
(`EngineArgs.get_batch_defaults`, 0.32)."""
_CPU_BLOCK_TOKENS = 128
"""A block of the CPU build where nothing is said (its `vllm:cache_config_info`, 0.32)."""

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


def _takes_videos(limits: object) -> bool:
    """Whether ``limits``, what --limit-mm-per-prompt is given, leave a request any video."""
    try:
        found = json.loads(str(limits))
    except ValueError:
        return True
    return not (isinstance(found, dict) and found.get("video") == 0)


def settings_of(engine: Engine, cards: Sequence[Card]) -> EngineSettings:
    """What of ``engine`` decides whether it fits.

    Raises:
        pydantic.ValidationError: a flag that decides it has a value that the planner cannot use.
    """
    said: dict[str, Any] = {}
    if not engine.cards:
        said["block_tokens"] = _CPU_BLOCK_TOKENS
    elif min(card.total_mib for card in cards) >= _LARGE_CARD_MIB:
        said["max_num_batched_tokens"] = _LARGE_BATCH_TOKENS
    said |= {COUNTED[flag]: value for flag, value in engine.flags.items() if flag in COUNTED}
    said["takes_videos"] = _takes_videos(engine.flags.get("limit-mm-per-prompt"))
    return EngineSettings(
        max_model_len=engine.context_tokens,
        max_num_seqs=engine.concurrent_requests,
        utilisation=engine.utilisation,
        kv_dtype=engine.kv_dtype,
        tensor_parallel=max(1, len(engine.cards)),
        kv_cache_mib=engine.cache_mib,
        vllm_minor=int(VERSION.split(".")[1]),
        **said,
    )


def configuration(
    engine: Engine, folder: str, socket: str, cards: Sequence[Card]
) -> dict[str, Any]:
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
        "max-num-batched-tokens": settings_of(engine, cards).max_num_batched_tokens,
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


def bench(engine: Engine, folder: str, load: Load) -> list[str]:
    """The command of vLLM's own benchmark."""
    return [
        *("vllm", "bench", "serve", "--backend", "openai"),
        *("--base-url", f"http://127.0.0.1:{engine.port}", "--endpoint", COMPLETION_PATH),
        *("--model", engine.name, "--tokenizer", folder, "--dataset-name", "random"),
        *("--random-input-len", str(load.input_tokens)),
        *("--random-output-len", str(load.output_tokens)),
        *("--num-prompts", str(load.requests)),
        *("--max-concurrency", str(load.concurrent_requests)),
        *("--num-warmups", str(load.concurrent_requests)),
        *("--ignore-eos", "--temperature", "0", "--seed", "0", "--disable-tqdm"),
        *("--save-result", "--result-dir", ".", "--result-filename", "result.json"),
    ]


def measured(result: Mapping[str, Any]) -> Measured:
    """What the benchmark saved, as figures."""
    return Measured(
        requests=result["num_prompts"],
        failed=result["failed"],
        tokens_per_second=result["output_throughput"],
        ttft_median_ms=result["median_ttft_ms"],
        ttft_p99_ms=result["p99_ttft_ms"],
        tpot_median_ms=result["median_tpot_ms"],
        tpot_p99_ms=result["p99_tpot_ms"],
    )


BENCH = Bench(
    command=bench,
    measured=measured,
    environment={"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"},
)
SERVER = Server(
    name="vllm",
    title="vLLM",
    version=VERSION,
    lock=LOCK,
    command="vllm serve",
    key_variable="VLLM_API_KEY",
    configuration=configuration,
    model_key="model",
    environment=environment,
    flags=flags,
    held=HELD,
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
    drain_seconds=DRAIN_SECONDS,
    memory=Memory(
        settings=settings_of,
        flags=COUNTED,
        saving=SAVING,
        uncounted=UNCOUNTED,
        processes_bytes=PROCESSES_BYTES,
    ),
    bench=BENCH,
)
