"""An engine's declaration as the planner reads it: which cards, which settings, which model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from holdfast.engines.vllm import VERSION
from holdfast.fit import planner
from holdfast.fit.planner import Card, EngineSettings, Fit
from holdfast.gpu.cards import declared_cards
from holdfast.settings import Engine, HostSettings
from holdfast.storage import checkpoint_of

FLAGS = {
    "block-size": "block_tokens",
    "enable-prefix-caching": "prefix_caching",
    "enforce-eager": "enforce_eager",
    "async-scheduling": "async_scheduling",
    "language-model-only": "text_only",
    "mamba-ssm-cache-dtype": "state_dtype",
    "max-num-batched-tokens": "max_num_batched_tokens",
}
"""Flags that decide what fits, and what the planner calls them."""
_LARGE_CARD_MIB = 70 * 1024
_LARGE_BATCH_TOKENS = 8192
"""vLLM computes batches of 8,192 tokens on cards of 70 GiB and more where nothing is said
(`EngineArgs.get_batch_defaults`, 0.32)."""
_CPU_BLOCK_TOKENS = 128
"""A block of the CPU build where nothing is said (its `vllm:cache_config_info`, 0.32)."""


def _takes_videos(limits: object) -> bool:
    """Whether ``limits``, what --limit-mm-per-prompt is given, leave a request any video."""
    try:
        found = json.loads(str(limits))
    except ValueError:
        return True
    return not (isinstance(found, dict) and found.get("video") == 0)


def settings_of(engine: Engine, cards: list[Card]) -> EngineSettings:
    """What of ``engine`` decides whether it fits.

    Raises:
        pydantic.ValidationError: a flag that decides it has a value that is none.
    """
    said: dict[str, Any] = {}
    if not engine.cards:
        said["block_tokens"] = _CPU_BLOCK_TOKENS
    elif min(card.total_mib for card in cards) >= _LARGE_CARD_MIB:
        said["max_num_batched_tokens"] = _LARGE_BATCH_TOKENS
    said |= {FLAGS[flag]: value for flag, value in engine.flags.items() if flag in FLAGS}
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


def cards_of(settings: HostSettings, engine: Engine) -> list[Card]:
    """The declared cards of ``engine``; on the CPU the memory it may take stands for one."""
    if not engine.cards:
        memory = engine.memory_max_mib
        return [Card(name="CPU", total_mib=memory, usable_mib=memory)]
    declared = declared_cards(settings)
    return [
        Card(name=name, total_mib=declared[name].vram_mib)
        for name in engine.cards
        if name in declared
    ]


def fit_of(settings: HostSettings, engine: Engine) -> Fit | None:
    """Whether ``engine`` fits its cards; None where its checkpoint or a card is not declared.

    Raises:
        NotUnderstood: the checkpoint's description cannot be planned with.
        pydantic.ValidationError: a flag that decides it has a value that is none.
    """
    checkpoint, cards = checkpoint_of(settings, engine), cards_of(settings, engine)
    if checkpoint is None or len(cards) != max(1, len(engine.cards)):
        return None
    model = planner.load(Path(checkpoint.description).expanduser())
    return planner.plan(model, cards, settings_of(engine, cards))
