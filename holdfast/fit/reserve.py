"""Estimates of the memory that one card needs besides weights and cache, each with its source.

vLLM measures this memory at start (`v1/worker/gpu_worker.py`, `determine_available_memory`, 0.32).
It runs the encoder, a full batch and the sampler one after another
(`v1/worker/gpu/model_runner.py`, `profile_run`), so only the largest of them counts. Workspaces
that stay allocated, graphs and contexts are added. The constants were fitted to the fitting half of
tests/unit/data/fit/logs.json (`logs`) only; docs/fit.md has their errors in the judging half.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from holdfast.fit.architecture import (
    Fields,
    is_encoder_only,
    quantisation_config,
    text_config,
)
from holdfast.fit.weights import quantisation

MIB = 2**20
GIB = 2**30

CONTEXT_BYTES = int(0.2 * GIB)
"""Memory of CUDA outside torch: 0.01 to 0.35 GiB (vllm#10517). Since 0.27 vLLM counts all memory
that is gone from the card; 0.13 GiB (0.31) and 0.15 (0.29) of it belong to neither weights nor
sampler."""
COMMUNICATION_BYTES = int(0.4 * GIB)
"""NCCL and custom all-reduce buffers, for each doubling of the cards that share a model. Qwen3 235B
on four cards needs 0.8 GiB that nothing else explains."""
GRAPH_BASE_BYTES = int(0.4 * GIB)
GRAPH_BYTES_PER_LAYER = 15 * MIB
"""CUDA graphs: a fixed part, and the part of one layer if all sizes up to 512 are captured. vLLM
extrapolates from the two largest (`v1/worker/gpu/cudagraph_utils.py`, `profile_cudagraph_memory`):
0.64 GiB for the 32 layers of Qwen3.5 4B, 0.88 for the 30 of Gemma 4 26B."""
GRAPHS_COUNT_SINCE = 20
"""N of the first version 0.N that subtracts its estimate of the graphs from the budget. Earlier
versions allocate graphs in addition to the budget (`envs.py`:
VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS is off in 0.19 and on in 0.20)."""
COMPILER_BYTES = int(0.57 * GIB)
"""Memory that the compiler uses for trials in the dummy run of a first start
(`config/compilation.py`, `benchmark_combo_kernel`): the peak of Llama 3.1 8B (0.31) without its
planned graphs, three times its batch."""
COMPILER_SINCE = 20
"""N of the version 0.N in the oldest log that names this setting."""
SECOND_RUNNER_SINCE = 29
"""N of the first version 0.N whose second runner runs every model
(`v1/worker/gpu/model_runner.py`). Since 0.26 it ran text models, without an estimate of graphs."""
BYTES_PER_LOGIT = 4
"""The second runner's logits: 16 bits each, and a copy if they are capped or gathered from several
cards (`model_executor/layers/logits_processor.py`). Unless a request sets sampling parameters, it
samples from the logits themselves, as in the dummy run: a kernel writes one candidate for 1,024 of
them (`v1/worker/gpu/sample/sampler.py`, `apply_sampling_params`; `gumbel.py`). 0.26, 0.30 and 0.32
do the same."""
KEPT_BYTES_PER_LOGIT = 4.125
"""Memory that the second runner's sampler keeps for penalties, per sequence and vocabulary entry: a
count of 32 bits, and one bit (`v1/worker/gpu/sample/penalties.py`). It is allocated after the
weights are measured (`v1/worker/gpu/model_runner.py`, `load_model`)."""
KEPT_COUNTS_SINCE = 27
"""N of the first version 0.N that counts all memory that is gone from the card, including the
sampler's (`utils/mem_utils.py`, `total_consumed`)."""
FIRST_RUNNER_BYTES_PER_LOGIT = 14
"""The first runner's logits: 16 bits, a copy in 32 bits, a probability, and a random number each
(`v1/sample/sampler.py`; `ops/topk_topp_sampler.py`, `random_sample`)."""
MOST_MULTIPROCESSORS = 192
"""Each multiprocessor also keeps 32 bits per vocabulary entry (`ops/topk_topp_triton.py`); no card
has more multiprocessors."""
OLD_BYTES_PER_LOGIT = 38.5
"""The logits when top-k and top-p still sorted (until vllm#33538, 0.16): 9.96 GiB for 1,024
sequences of Gemma 3, 1.83 for 256 of Phi-4-mini."""
LARGEST_ITEM_TOKENS = 16_384
"""Tokens of the largest image or video of Qwen's encoders if no file has a limit. vLLM measures an
encoder with at least one such item (`multimodal/encoder_budget.py`)."""
VIDEO_FRAME_PAIRS = 7
"""vLLM measures Qwen2-VL and Qwen2.5-VL with a video of up to 14 frames, if the context has room.
Two frames are as large as the largest image (`models/qwen2_vl.py`, `get_max_video_tokens`)."""
UNKNOWN_ENCODER_BYTES = 1 * GIB
"""An encoder without sizes in config.json (audio); a rule of thumb."""
CHUNK_TOKENS = 32_768
"""Tokens that the experts computed at once until 0.16 (removed in vllm#34086)."""
WORKSPACES_STAY_SINCE = 12
"""N of the first version 0.N that keeps the experts' workspaces (`v1/worker/workspace.py`)."""
MARGIN_SHARE = 0.01
"""Share of the budget, for kernels that need more than these estimates. A wrong "fits" costs more
than a hundredth of a card."""


@dataclass(frozen=True)
class Running:
    """The settings that decide the reserve."""

    cards: int = 1
    sequences: int = 256
    batched_tokens: int = 2048
    context_tokens: int = 0
    enforce_eager: bool = False
    text_only: bool = False
    takes_videos: bool = True
    image_tokens: int = LARGEST_ITEM_TOKENS
    """Tokens of the largest image (`largest_image_tokens`)."""
    vllm_minor: int = 32
    """N of vLLM's version 0.N."""


@dataclass(frozen=True)
class Reserve:
    """Memory that one card needs besides weights and cache, in bytes."""

    activation_bytes: int
    """Peak of the dummy run, and the memory that experts and sampler keep."""
    graph_bytes: int
    context_bytes: int
    margin_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """The sum of all parts."""
        return self.activation_bytes + self.graph_bytes + self.context_bytes + self.margin_bytes


def _tower(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The vision tower's part of ``config``."""
    tower = (config.get("thinker_config") or config).get("vision_config")
    return tower if isinstance(tower, Mapping) else None


def largest_image_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    """Tokens of the largest image that ``processor`` (preprocessor_config.json) allows.

    Qwen's image processor limits the pixels, by max_pixels or size.longest_edge
    (`models/qwen2_vl.py`, `get_image_size_with_most_features`). For other processors longest_edge
    is a length.
    """
    f = Fields(_tower(config) or {})
    merge, patch = f.get("spatial_merge_size"), f.get("patch_size")
    is_qwen = str(processor.get("image_processor_type")).startswith("Qwen2VLImageProcessor")
    size = processor.get("size") or {}
    pixels = max(processor.get("max_pixels") or 0, size.get("longest_edge") or 0)
    if not (is_qwen and merge and patch and pixels):
        return LARGEST_ITEM_TOKENS
    return max(1, int(pixels // (merge * patch) ** 2))


def _largest_item_tokens(config: Mapping[str, Any], run: Running) -> int:
    """Tokens of the smallest image or video that vLLM measures an encoder with."""
    image = run.image_tokens
    if not run.takes_videos:
        return image
    if config.get("model_type") in ("qwen2_vl", "qwen2_5_vl"):
        return image * max(1, min(VIDEO_FRAME_PAIRS, run.context_tokens // image))
    return max(image, LARGEST_ITEM_TOKENS)


def _patch_bytes(f: Fields, hidden: int) -> int:
    """Bytes of a vision tower for each patch at its peak, with 16 bits per number.

    A tower keeps two and a half feed-forward vectors and four hidden ones (1.5 GiB for Qwen3.5 4B).
    A gated tower keeps gate, up, their product and the hidden vectors, and the patch's own values
    in 32 bits (`models/qwen2_5_vl.py`, `Qwen2_5_VisionBlock`).
    """
    inner = f.largest("intermediate_size", "mlp_dim", default=4 * hidden)
    if f.get("hidden_act") != "silu":
        return 5 * inner + 8 * hidden
    values = f.get("in_channels", "in_chans", default=3) * f.need("patch_size") ** 2
    return 6 * inner + 8 * hidden + 4 * int(values * f.get("temporal_patch_size", default=1))


def encoder_bytes(config: Mapping[str, Any], run: Running) -> int:
    """Peak of the vision tower for the tokens that vLLM measures it with.

    The tower merges several patches into one token.
    """
    holder = config.get("thinker_config") or config
    tower = _tower(config)
    if tower is None:
        return UNKNOWN_ENCODER_BYTES if holder.get("audio_config") is not None else 0
    f = Fields(tower)
    hidden = f.largest("hidden_size", "embed_dim", "width", default=0)
    if not hidden:
        return UNKNOWN_ENCODER_BYTES
    tokens, patches = run.batched_tokens, 1.0
    if merged := f.get("spatial_merge_size"):
        tokens, patches = max(tokens, _largest_item_tokens(config, run)), merged**2
    elif pooled := f.get("pooling_kernel_size"):
        patches = pooled**2
    elif per_image := holder.get("mm_tokens_per_image"):
        patches = (f.need("image_size") // f.need("patch_size")) ** 2 / per_image
    elif ratio := holder.get("downsample_ratio") or f.get("pixel_shuffle_ratio"):
        patches = 1 / ratio**2
    return int(tokens * patches * _patch_bytes(f, hidden))


def _has_nvfp4_experts(config: Mapping[str, Any]) -> bool:
    """Whether experts compute in NVFP4, in a checkpoint of one format or of several.

    If only the weights are in NVFP4 (W4A16_NVFP4), Marlin computes (`quantization/modelopt.py`).
    """
    found = quantisation_config(config)
    inner = found.get("quantization") or found
    named = inner.get("quantized_layers") or found.get("quantized_layers") or {}
    if named:
        algorithms = {layer["quant_algo"] for name, layer in named.items() if "expert" in name}
        return "NVFP4" in algorithms
    return "nvfp4" in quantisation(config)


def _expert_bytes(config: Mapping[str, Any], hidden: int, dense: int, run: Running) -> int:
    """Bytes of both workspaces of a mixture of experts, with 16 bits per number.

    Both have one row for each token and chosen expert. A row of the first is as wide as the input
    of the gating or the hidden vector, a row of the second as its output or the hidden vector
    (`fused_moe/experts/triton_moe.py`, `workspace_shapes`). NVFP4 experts keep three more hidden
    vectors: sorted by expert, sorted back, and weighted (`fused_moe/experts/cutlass_moe.py`,
    `run_cutlass_moe_fp4`).
    """
    f = Fields(text_config(config))
    chosen = f.largest(
        *("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k"),
        default=0,
    )
    expert = f.largest("moe_intermediate_size", default=dense) // run.cards
    tokens = run.batched_tokens if run.vllm_minor > 16 else min(run.batched_tokens, CHUNK_TOKENS)
    sorted_bytes = 3 * hidden if _has_nvfp4_experts(config) else 0
    return 2 * tokens * chosen * (max(2 * expert, hidden) + max(expert, hidden) + sorted_bytes)


def _is_early_second_runner(config: Mapping[str, Any], run: Running) -> bool:
    sees = encoder_bytes(config, run) > 0
    return 26 <= run.vllm_minor < SECOND_RUNNER_SINCE and not sees


def _sampler_bytes(config: Mapping[str, Any], vocabulary: int, run: Running) -> tuple[int, int]:
    """The sampler's peak, and the part of it that stays allocated, in bytes."""
    logits = run.sequences * vocabulary
    if run.vllm_minor >= SECOND_RUNNER_SINCE or _is_early_second_runner(config, run):
        # Each card also holds its own part of the logits, besides the gathered ones and the copy
        # in the order of the vocabulary.
        own = 2 / run.cards if run.cards > 1 else 0
        kept = KEPT_BYTES_PER_LOGIT if run.vllm_minor >= KEPT_COUNTS_SINCE else 0
        return int(logits * (BYTES_PER_LOGIT + own)), int(logits * kept)
    if run.vllm_minor <= 15:
        return int(logits * OLD_BYTES_PER_LOGIT), 0
    rows = min(run.sequences, MOST_MULTIPROCESSORS)
    return logits * FIRST_RUNNER_BYTES_PER_LOGIT + rows * vocabulary * 4, 0


def _activation_bytes(config: Mapping[str, Any], run: Running) -> int:
    """Peak of encoder, batch, compiler or sampler, and the memory that experts and sampler keep.

    Each token of a batch takes three hidden vectors and three of the feed-forward layer, with 16
    bits per number: 1.05 GiB for 32,768 tokens of Qwen2.5 0.5B, for which vLLM measured 1.06.
    """
    f = Fields(text_config(config))
    hidden = f.need("hidden_size", "n_embd", "d_model")
    # Some multimodal files do not name the vocabulary's size; no such model has a larger one.
    vocabulary = int(f.get("vocab_size", "padded_vocab_size", default=262_208))
    dense = f.largest("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    # A text that is read in both directions is never divided into batches.
    is_encoder = is_encoder_only(config)
    tokens = max(run.batched_tokens, run.context_tokens) if is_encoder else run.batched_tokens
    experts = _expert_bytes(config, hidden, dense, run)
    inner = 0 if experts else 3 * dense // run.cards
    batch = tokens * 2 * (3 * hidden + inner)
    sampler, kept = (0, 0) if is_encoder else _sampler_bytes(config, vocabulary, run)
    encoder = 0 if run.text_only else encoder_bytes(config, run)
    if run.vllm_minor >= COMPILER_SINCE and not run.enforce_eager:
        batch = max(batch, COMPILER_BYTES)
    if run.vllm_minor < WORKSPACES_STAY_SINCE:
        return max(batch + experts, sampler, encoder)
    return max(batch, sampler, encoder) + experts + kept


def estimate(config: Mapping[str, Any], run: Running) -> Reserve:
    """The memory that each card needs besides weights and cache, without a margin."""
    graphs = 0
    counts = run.vllm_minor >= GRAPHS_COUNT_SINCE and not _is_early_second_runner(config, run)
    if counts and not run.enforce_eager:
        # vLLM captures up to twice the sequences that run at once, at most 512.
        captured = min(512, 2 * run.sequences) / 512
        depth = Fields(text_config(config)).depth
        graphs = GRAPH_BASE_BYTES + int(depth * GRAPH_BYTES_PER_LAYER * captured)
    context = CONTEXT_BYTES + (run.cards - 1).bit_length() * COMMUNICATION_BYTES
    return Reserve(_activation_bytes(config, run), graphs, context)
