"""Does this model fit these cards with these settings, and if not, which nearest settings would?

What vLLM does at start (`v1/worker/gpu_worker.py`, 0.32): it may use `utilisation` of what CUDA
sees of each card; weights, the peak of a dummy run, what CUDA and NCCL hold outside torch and the
CUDA graphs come off; the rest is the cache. Weights and cache are exact here; the peak and the
graphs depend on kernels and are estimates (`reserve`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import Field

from holdfast.fit import blocks, weights
from holdfast.fit.architecture import (
    CacheFormat,
    Fields,
    Layer,
    NotUnderstood,
    Remembers,
    is_encoder_only,
    layers,
    text_config,
)
from holdfast.fit.reserve import (
    GIB,
    MARGIN_SHARE,
    MIB,
    Reserve,
    Running,
    estimate,
    largest_image_tokens,
)
from holdfast.types import Model as Settings

_LENGTHS = (
    *("max_position_embeddings", "n_positions", "max_seq_len", "seq_length"),
    *("max_target_positions", "max_sequence_length", "max_seq_length", "seq_len"),
)
"""Keys of config.json that tell the longest context, in tokens."""
USABLE_SHARE = 0.98
"""What CUDA sees of the memory nvidia-smi shows: 0.982 (3090, vllm#10517), 0.985 (5090, field
notes 10), 0.990 (A100 80 GB), 0.994 (H100 80 GB); the lowest, rounded down."""


class Card(Settings):
    """One card."""

    name: str = "card"
    """For the table."""
    total_mib: int = Field(gt=0)
    """Memory as nvidia-smi's memory.total shows it, MiB."""
    usable_mib: int | None = Field(default=None, gt=0)
    """What CUDA sees of it, MiB; None takes 98 %."""

    @property
    def usable_bytes(self) -> int:
        """What vLLM multiplies with the utilisation, in bytes."""
        return MIB * (self.usable_mib or int(self.total_mib * USABLE_SHARE))


class EngineSettings(Settings):
    """The settings of an engine that decide what fits; names and defaults are vLLM's."""

    max_model_len: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together; None is what the model allows."""
    utilisation: float = Field(default=0.80, gt=0, le=1)
    """Share of the card the engine may use. More than 0.80 needs a reason, given where the engine
    is declared."""
    kv_dtype: str = "auto"
    """Cache format: auto, fp8, nvfp4 or a per-token-head format."""
    state_dtype: str = "auto"
    """Format of recurrent states: auto, float32 or bfloat16."""
    tensor_parallel: int = Field(default=1, gt=0)
    """Cards that share each layer."""
    max_num_seqs: int = Field(default=256, gt=0)
    """Requests that run at once."""
    max_num_batched_tokens: int = Field(default=2048, gt=0)
    """Tokens computed in one step. vLLM's default is 8192 on cards of 70 GiB and more."""
    enforce_eager: bool = False
    """No CUDA graphs: saves their memory, costs speed."""
    prefix_caching: bool = True
    """Keep what requests have in common."""
    async_scheduling: bool = True
    """Prepare the next step while one runs; a sliding window then keeps two batches more."""
    block_tokens: int | None = Field(default=None, gt=0)
    """--block-size in tokens."""
    draft_tokens: int = Field(default=0, ge=0)
    """Tokens drafted by the model's own prediction head; 0 is off."""
    text_only: bool = False
    """--language-model-only: neither load nor measure the encoders."""
    takes_videos: bool = True
    """Whether a request may hold a video: not where --limit-mm-per-prompt says 0 of them."""
    vllm_minor: int = Field(default=32, ge=6)
    """Version 0.N of vLLM; its bookkeeping changed (`blocks.Scheduling`)."""
    kv_cache_mib: float | None = Field(default=None, gt=0)
    """The cache's memory on each card, MiB, where it is known (vLLM logs it), or --kv-cache-memory;
    None computes it."""
    reserve_mib: float | None = Field(default=None, ge=0)
    """Activations, graphs and contexts on each card together, MiB, where measured; None
    estimates."""

    @property
    def scheduling(self) -> blocks.Scheduling:
        """What `blocks` needs of these settings."""
        return blocks.Scheduling(
            block_tokens=self.block_tokens,
            batched_tokens=self.max_num_batched_tokens,
            batches_in_flight=2 if self.async_scheduling else 1,
            prefix_caching=self.prefix_caching,
            draft_tokens=self.draft_tokens,
            vllm_minor=self.vllm_minor,
        )

    def running(self, context_tokens: int) -> Running:
        """What `reserve` needs of these settings."""
        return Running(
            cards=self.tensor_parallel,
            sequences=self.max_num_seqs,
            batched_tokens=self.max_num_batched_tokens,
            context_tokens=context_tokens,
            enforce_eager=self.enforce_eager,
            text_only=self.text_only,
            takes_videos=self.takes_videos,
            vllm_minor=self.vllm_minor,
        )

    @property
    def cache_format(self) -> CacheFormat:
        """What `architecture` needs of these settings."""
        return CacheFormat(self.tensor_parallel, self.kv_dtype, self.state_dtype, self.draft_tokens)


@dataclass(frozen=True)
class Model:
    """A model as its files describe it."""

    name: str
    config: Mapping[str, Any]
    """config.json."""
    weights: weights.Weights
    processor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json; empty where there is none."""

    @cached_property
    def text(self) -> Fields:
        """The language model's part of the configuration."""
        return Fields(text_config(self.config))

    @property
    def longest_tokens(self) -> int:
        """The context the model was made for, stretched by YaRN and the like; 0 if not told.

        The keys are those that vLLM reads (0.32, `model_arch_config_convertor.py`,
        `derive_max_model_len_and_key`): model_max_length, else the smallest of the others.
        """
        told = [int(value) for name in _LENGTHS if (value := self.text.get(name))]
        positions = int(self.text.get("model_max_length", default=min(told, default=0)))
        rope = self.text.get("rope_scaling", "rope_parameters", default={})
        kind, factor = rope.get("rope_type") or rope.get("type"), rope.get("factor")
        original = rope.get("original_max_position_embeddings")
        if kind not in ("yarn", "linear", "dynamic") or not factor:
            return positions
        # Gemma 3 counts its stretched positions.
        is_counted = "gemma3" in str(self.config.get("model_type"))
        base = original or (positions / factor if is_counted or kind == "yarn" else positions)
        return max(positions, int(base * factor))


@dataclass(frozen=True)
class CardFit:
    """The memory of one card, in bytes."""

    card: Card
    budget_bytes: int
    """utilisation x usable."""
    weight_bytes: int
    reserve: Reserve
    cache_bytes: int
    """What is left for blocks; negative when weights and reserve alone are too much."""


@dataclass(frozen=True)
class Fit:
    """The answer."""

    model: Model
    engine: EngineSettings
    cards: tuple[CardFit, ...]
    pool: blocks.Pool
    layers: tuple[Layer, ...]
    """On one card."""
    context_tokens: int
    """The context that was asked for."""
    blocks: int
    """vLLM's num_gpu_blocks: of the card with the least."""
    nearest: tuple[str, ...] = ()
    """Settings that would fit, those that keep the context first; empty when it fits. A utilisation
    above 0.80 needs a reason."""

    @property
    def concurrency(self) -> float:
        """Requests of the full context at once (vLLM's "Maximum concurrency")."""
        return self.pool.concurrency(self.blocks, self.context_tokens)

    @property
    def cache_tokens(self) -> int:
        """vLLM's "GPU KV cache size", in tokens."""
        return self.pool.logged_tokens(self.blocks, self.context_tokens)

    @property
    def longest_tokens(self) -> int:
        """The longest context these settings can serve, in tokens."""
        limit = self.model.longest_tokens or self.context_tokens
        return self.pool.longest(self.blocks, limit)

    @property
    def state_bytes(self) -> int:
        """Recurrent state of one sequence on one card, without padding."""
        return sum(x.bytes_per_sequence for x in self.layers if isinstance(x, Remembers))

    @property
    def bytes_per_token(self) -> int:
        """Cache of one token on one card, of the layers that keep every token."""
        return sum(
            x.bytes_per_token
            for x in self.layers
            if not isinstance(x, Remembers) and x.window_tokens is None
        )

    @property
    def binds(self) -> str:
        """What stands in the way, or would first."""
        least = min(self.cards, key=lambda card: card.cache_bytes)
        if least.cache_bytes <= 0:
            return f"weights and reserve are {-least.cache_bytes / GIB:.2f} GiB over the budget"
        if self.context_tokens > self.longest_tokens:
            is_models = self.longest_tokens == self.model.longest_tokens
            what = "the model reads" if is_models else "the cache holds one request of"
            return f"{what} {self.longest_tokens:,} tokens at most"
        if not self.pool.groups:
            return (
                f"max_num_seqs: an encoder keeps no cache, {self.engine.max_num_seqs} run at once"
            )
        if self.lacks_states:
            return f"{self.engine.max_num_seqs} sequences need a state each, {self.blocks} fit"
        if self.concurrency < self.engine.max_num_seqs:
            return f"the cache: {self.concurrency:.2f} requests of full length at once"
        return f"max_num_seqs: the cache would hold {self.concurrency:.0f} requests of full length"

    @property
    def lacks_states(self) -> bool:
        """vLLM refuses to capture graphs for more sequences than there are blocks."""
        captures = not self.engine.enforce_eager
        return captures and self.pool.has_state and self.engine.max_num_seqs > self.blocks

    @property
    def fits(self) -> bool:
        """Whether vLLM would start."""
        return self.context_tokens <= self.longest_tokens and not self.lacks_states


def load(folder: Path | str, known: weights.Weights | None = None) -> Model:
    """The model in ``folder``: config.json beside its safetensors files or their index.

    hf_quant_config.json tells the number formats where config.json does not (older ModelOpt; vLLM
    0.32, `transformers_utils/config.py`), preprocessor_config.json how large an image may be.
    ``known`` weights are taken as they are.

    Raises:
        NotUnderstood: a file is missing or damaged.
    """
    folder = Path(folder)
    path = folder / "config.json"
    try:
        config = weights.described(path)
    except (FileNotFoundError, NotADirectoryError):
        hint = "serve it with the floor (llama.cpp)" if any(folder.glob("*.gguf")) else "name one"
        raise NotUnderstood(f"{folder} holds no config.json of a model: {hint}") from None
    beside = folder / "hf_quant_config.json"
    if config.get("quantization_config") is None and beside.is_file():
        config["quantization_config"] = weights.described(beside)
    processor = folder / "preprocessor_config.json"
    return Model(
        folder.resolve().name,
        config,
        known or weights.read(folder),
        weights.described(processor) if processor.is_file() else {},
    )


def reserve(model: Model, engine: EngineSettings) -> Reserve:
    """What each card needs besides weights and cache, without a margin."""
    if engine.reserve_mib is not None:
        return Reserve(int(engine.reserve_mib * MIB), 0, 0)
    context = engine.max_model_len or model.longest_tokens
    image_tokens = largest_image_tokens(model.config, model.processor)
    return estimate(model.config, replace(engine.running(context), image_tokens=image_tokens))


def _plan(model: Model, cards: Sequence[Card], engine: EngineSettings) -> Fit:
    if len(cards) != engine.tensor_parallel:
        raise NotUnderstood(
            f"{engine.tensor_parallel} cards share the model and {len(cards)} are given: name as"
            " many cards as tensor_parallel says"
        )
    found = tuple(layers(model.config, engine.cache_format))
    if not found and not is_encoder_only(model.config):
        raise NotUnderstood("no layer of this model caches anything: it is not served by blocks")
    context = engine.max_model_len or model.longest_tokens
    if context < 1:
        raise NotUnderstood("config.json names no longest context: give max_model_len")
    shared = blocks.pool(found, engine.scheduling)
    weight = model.weights.on_one_card(
        model.config, engine.tensor_parallel, engine.draft_tokens > 0
    )
    held = reserve(model, engine)
    fits = []
    for card in cards:
        budget = int(card.usable_bytes * engine.utilisation)
        if engine.reserve_mib is None:
            held = replace(held, margin_bytes=int(MARGIN_SHARE * budget))
        left = budget - weight - held.total_bytes
        if engine.kv_cache_mib is not None:
            left = int(engine.kv_cache_mib * MIB)
        fits.append(CardFit(card, budget, weight, held, left))
    return Fit(
        model=model,
        engine=engine,
        cards=tuple(fits),
        pool=shared,
        layers=found,
        context_tokens=context,
        blocks=min(shared.blocks(fit.cache_bytes) for fit in fits),
    )


def _alternatives(engine: EngineSettings) -> Iterator[dict[str, Any]]:
    """Changes of settings, the least painful first."""
    less_running: dict[str, Any] = {"max_num_seqs": min(8, engine.max_num_seqs)}
    less_running["max_num_batched_tokens"] = min(2048, engine.max_num_batched_tokens)
    yield less_running
    if engine.kv_dtype == "auto":
        yield {"kv_dtype": "fp8"}
        yield {"kv_dtype": "fp8", **less_running}
    if engine.kv_cache_mib is None:
        if engine.utilisation < 0.9:
            yield {"utilisation": 0.9}
            yield {"utilisation": 0.9, "kv_dtype": "fp8", **less_running}
        yield {"tensor_parallel": 2 * engine.tensor_parallel}


def _nearest(fit: Fit, cards: Sequence[Card]) -> tuple[str, ...]:
    """Settings that would fit, those that keep the context first."""
    whole: list[str] = []
    shorter: list[str] = []
    for change in [{}, *_alternatives(fit.engine)]:
        new = {k: v for k, v in change.items() if v != getattr(fit.engine, k)}
        if change and not new:
            continue
        engine = fit.engine.model_copy(update=new)
        more = engine.tensor_parallel // fit.engine.tensor_parallel
        try:
            other = _plan(fit.model, list(cards) * more, engine)
        except NotUnderstood:
            # Heads that do not divide by so many cards, or a format no kernel has.
            continue
        if other.lacks_states and other.blocks:
            new["max_num_seqs"] = other.blocks
        fits_whole = other.context_tokens <= other.longest_tokens
        if not fits_whole:
            new["max_model_len"] = other.longest_tokens
        words = ", ".join(f"{key} {value}" for key, value in new.items())
        if other.longest_tokens:
            (whole if fits_whole else shorter).append(words)
    if fit.longest_tokens == fit.model.longest_tokens:
        # The model sets this limit, so only a shorter context can help.
        return tuple(shorter[:1])
    return (*whole, *shorter[: max(1, 4 - len(whole))])


def plan(model: Model, cards: Sequence[Card], engine: EngineSettings) -> Fit:
    """Whether ``model`` fits ``cards`` with the settings of ``engine``.

    ``cards`` are those that share the model, as many as ``engine.tensor_parallel``.

    Raises:
        NotUnderstood: the model cannot be planned, or the cards do not divide it.
    """
    try:
        fit = _plan(model, cards, engine)
    except NotUnderstood:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise NotUnderstood(
            f"config.json of {model.name} holds a value of an unexpected kind ({error}): copy the"
            " file again, or name another model"
        ) from error
    if fit.fits:
        return fit
    return replace(fit, nearest=_nearest(fit, cards))
