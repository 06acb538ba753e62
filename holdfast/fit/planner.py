"""Whether a model fits its cards with its settings, and the nearest settings with which it would.

The plan follows vLLM's start (`v1/worker/gpu_worker.py`, 0.32). The budget is `utilisation` x the
memory of a card that CUDA sees. vLLM subtracts the weights, the peak of a dummy run, the memory of
CUDA and NCCL outside torch, and the CUDA graphs; the rest is the cache. Weights and cache are exact
here. The peak and the graphs depend on kernels, so they are estimates (`reserve`).
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
"""Keys of config.json that hold the longest context, in tokens."""
USABLE_SHARE = 0.98
"""Share of the memory in nvidia-smi that CUDA sees: the lowest known, rounded down. Known are 0.982
(3090, vllm#10517), 0.985 (5090, field notes 10), 0.990 (A100 80 GB) and 0.994 (H100 80 GB)."""


class Card(Settings):
    """One card."""

    name: str = "card"
    """Its name in the table."""
    total_mib: int = Field(gt=0)
    """Memory as nvidia-smi's memory.total shows it, MiB."""
    usable_mib: int | None = Field(default=None, gt=0)
    """Memory that CUDA sees, MiB; None: 98 % of ``total_mib``."""

    @property
    def usable_bytes(self) -> int:
        """The memory that vLLM multiplies by the utilisation, in bytes."""
        return MIB * (self.usable_mib or int(self.total_mib * USABLE_SHARE))


class EngineSettings(Settings):
    """The settings of an engine that decide what fits; names and defaults are vLLM's."""

    max_model_len: int | None = Field(default=None, gt=0)
    """Tokens of prompt and answer together; None: as many as the model allows."""
    utilisation: float = Field(default=0.80, gt=0, le=1)
    """Share of the card that the engine may use; more than 0.80 needs a reason in the engine's
    declaration."""
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
    """No CUDA graphs: saves their memory, but is slower."""
    prefix_caching: bool = True
    """Keep prefixes that requests share."""
    async_scheduling: bool = True
    """Prepare the next step while one runs; a sliding window then keeps two more batches."""
    block_tokens: int | None = Field(default=None, gt=0)
    """--block-size in tokens."""
    draft_tokens: int = Field(default=0, ge=0)
    """Tokens drafted by the model's own prediction head; 0: no drafting."""
    text_only: bool = False
    """--language-model-only: neither load nor measure the encoders."""
    takes_videos: bool = True
    """Whether a request may contain a video; False for 0 videos in --limit-mm-per-prompt."""
    vllm_minor: int = Field(default=32, ge=6)
    """N of vLLM's version 0.N; versions divide the memory differently (`blocks.Scheduling`)."""
    kv_cache_mib: float | None = Field(default=None, gt=0)
    """Memory of the cache on each card, MiB: vLLM's log has it, or --kv-cache-memory sets it; None:
    it is computed."""
    reserve_mib: float | None = Field(default=None, ge=0)
    """Activations, graphs and contexts on each card together, MiB, if measured; None: they are
    estimated."""

    @property
    def scheduling(self) -> blocks.Scheduling:
        """The settings that `blocks` uses."""
        return blocks.Scheduling(
            block_tokens=self.block_tokens,
            batched_tokens=self.max_num_batched_tokens,
            batches_in_flight=2 if self.async_scheduling else 1,
            prefix_caching=self.prefix_caching,
            draft_tokens=self.draft_tokens,
            vllm_minor=self.vllm_minor,
        )

    def running(self, context_tokens: int) -> Running:
        """The settings that `reserve` uses."""
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
        """The settings that `architecture` uses."""
        return CacheFormat(self.tensor_parallel, self.kv_dtype, self.state_dtype, self.draft_tokens)


@dataclass(frozen=True)
class Model:
    """A model, read from its files."""

    name: str
    config: Mapping[str, Any]
    """config.json."""
    weights: weights.Weights
    processor: Mapping[str, Any] = field(default_factory=dict)
    """preprocessor_config.json; empty if there is none."""

    @cached_property
    def text(self) -> Fields:
        """The language model's part of the configuration."""
        return Fields(text_config(self.config))

    @property
    def longest_tokens(self) -> int:
        """The longest context of the model, with YaRN and the like; 0 if config.json has none.

        The keys are those that vLLM reads (0.32, `model_arch_config_convertor.py`,
        `derive_max_model_len_and_key`): model_max_length, else the smallest of the others.
        """
        lengths = [int(value) for name in _LENGTHS if (value := self.text.get(name))]
        positions = int(self.text.get("model_max_length", default=min(lengths, default=0)))
        rope = self.text.get("rope_scaling", "rope_parameters", default={})
        kind, factor = rope.get("rope_type") or rope.get("type"), rope.get("factor")
        original = rope.get("original_max_position_embeddings")
        if kind not in ("yarn", "linear", "dynamic") or not factor:
            return positions
        # Gemma 3's positions already include the factor.
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
    """Memory left for blocks; negative if weights and reserve exceed the budget."""


@dataclass(frozen=True)
class Fit:
    """The result of a plan."""

    model: Model
    engine: EngineSettings
    cards: tuple[CardFit, ...]
    pool: blocks.Pool
    layers: tuple[Layer, ...]
    """On one card."""
    context_tokens: int
    """The requested context."""
    blocks: int
    """vLLM's num_gpu_blocks: those of the card with the fewest."""
    nearest: tuple[str, ...] = ()
    """Settings that would fit, those that keep the context first; empty if the model fits. A
    utilisation above 0.80 needs a reason."""

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
        """The longest context that these settings can serve, in tokens."""
        limit = self.model.longest_tokens or self.context_tokens
        return self.pool.longest(self.blocks, limit)

    @property
    def state_bytes(self) -> int:
        """Bytes of the recurrent state of one sequence on one card, without padding."""
        return sum(x.bytes_per_sequence for x in self.layers if isinstance(x, Remembers))

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one token takes on one card, in the layers that keep every token."""
        return sum(
            x.bytes_per_token
            for x in self.layers
            if not isinstance(x, Remembers) and x.window_tokens is None
        )

    @property
    def binds(self) -> str:
        """The limit that is exceeded, or that more load would reach first."""
        least = min(self.cards, key=lambda card: card.cache_bytes)
        if least.cache_bytes <= 0:
            return f"weights and reserve exceed the budget by {-least.cache_bytes / GIB:.2f} GiB"
        if self.context_tokens > self.longest_tokens:
            is_models = self.longest_tokens == self.model.longest_tokens
            what = (
                "the model reads at most" if is_models else "the cache holds one request of up to"
            )
            return f"{what} {self.longest_tokens:,} tokens"
        if not self.pool.groups:
            return (
                f"max_num_seqs: an encoder has no cache, and {self.engine.max_num_seqs} run at once"
            )
        if self.lacks_states:
            return (
                f"each of {self.engine.max_num_seqs} sequences needs a state, but only"
                f" {self.blocks} fit"
            )
        if self.concurrency < self.engine.max_num_seqs:
            return f"the cache holds {self.concurrency:.2f} requests of full length"
        return f"max_num_seqs: the cache could hold {self.concurrency:.0f} requests of full length"

    @property
    def lacks_states(self) -> bool:
        """Whether vLLM would refuse to capture graphs: there are more sequences than blocks."""
        captures = not self.engine.enforce_eager
        return captures and self.pool.has_state and self.engine.max_num_seqs > self.blocks

    @property
    def fits(self) -> bool:
        """Whether vLLM would start."""
        return self.context_tokens <= self.longest_tokens and not self.lacks_states


def load(folder: Path | str, known: weights.Weights | None = None) -> Model:
    """The model in ``folder``: config.json beside its safetensors files or their index.

    If config.json has no number formats (older ModelOpt), they are read from hf_quant_config.json
    (vLLM 0.32, `transformers_utils/config.py`). preprocessor_config.json holds the largest image.
    ``known`` weights replace those of the files.

    Raises:
        NotUnderstood: a file is missing or damaged.
    """
    folder = Path(folder)
    path = folder / "config.json"
    try:
        config = weights.described(path)
    except (FileNotFoundError, NotADirectoryError):
        hint = "serve it with the floor (llama.cpp)" if any(folder.glob("*.gguf")) else "name one"
        raise NotUnderstood(f"{folder} has no config.json of a model: {hint}") from None
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
    """The memory that each card needs besides weights and cache, without a margin."""
    if engine.reserve_mib is not None:
        return Reserve(int(engine.reserve_mib * MIB), 0, 0)
    context = engine.max_model_len or model.longest_tokens
    image_tokens = largest_image_tokens(model.config, model.processor)
    return estimate(model.config, replace(engine.running(context), image_tokens=image_tokens))


def _plan(model: Model, cards: Sequence[Card], engine: EngineSettings) -> Fit:
    if len(cards) != engine.tensor_parallel:
        raise NotUnderstood(
            f"tensor_parallel is {engine.tensor_parallel}, but {len(cards)} cards are given: name"
            " as many cards as tensor_parallel"
        )
    found = tuple(layers(model.config, engine.cache_format))
    if not found and not is_encoder_only(model.config):
        raise NotUnderstood("no layer of this model uses a cache, so blocks cannot be planned")
    context = engine.max_model_len or model.longest_tokens
    if context < 1:
        raise NotUnderstood("config.json has no longest context: give max_model_len")
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
            # So many cards cannot share the heads, or no kernel has the format.
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
        # The limit is the model's, so only a shorter context can help.
        return tuple(shorter[:1])
    return (*whole, *shorter[: max(1, 4 - len(whole))])


def plan(model: Model, cards: Sequence[Card], engine: EngineSettings) -> Fit:
    """Whether ``model`` fits ``cards`` with the settings of ``engine``.

    ``cards`` share the model; there are ``engine.tensor_parallel`` of them.

    Raises:
        NotUnderstood: the model cannot be planned, or the cards cannot share it.
    """
    try:
        fit = _plan(model, cards, engine)
    except NotUnderstood:
        raise
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise NotUnderstood(
            f"config.json of {model.name} has a value of an unexpected kind ({error}): copy the"
            " file again, or name another model"
        ) from error
    if fit.fits:
        return fit
    return replace(fit, nearest=_nearest(fit, cards))
