"""What one card needs besides weights and cache: the estimates, each with where it comes from.

vLLM measures it at start (`v1/worker/gpu_worker.py`, `determine_available_memory`, 0.32): encoder,
a full batch and the sampler run one after another (`v1/worker/gpu/model_runner.py`, `profile_run`),
so that the largest of them counts, and workspaces that stay, graphs and contexts are added. The
constants were fitted to the fitting half of tests/unit/data/fit/logs.json (`logs`), none to the
judging half; docs/fit.md says how far they are off there.
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
"""What CUDA holds outside torch: 0.01 to 0.35 GiB (vllm#10517). Of what is gone from the card since
0.27, 0.13 GiB (0.31) and 0.15 (0.29) are neither weights nor kept by the sampler."""
COMMUNICATION_BYTES = int(0.4 * GIB)
"""NCCL and custom all-reduce buffers for each doubling of the cards that share a model: Qwen3 235B
on four cards needs 0.8 GiB that nothing else explains."""
GRAPH_BASE_BYTES = int(0.4 * GIB)
GRAPH_BYTES_PER_LAYER = 15 * MIB
"""CUDA graphs: the first, and one layer's share when all sizes up to 512 are captured. vLLM
extrapolates from the largest two (`v1/worker/gpu/cudagraph_utils.py`,
`profile_cudagraph_memory`): 0.64 GiB for the 32 layers of Qwen3.5 4B, 0.88 for the 30 of Gemma 4
26B."""
GRAPHS_COUNT_SINCE = 20
"""Version 0.N that first takes its estimate of the graphs off the budget; before, they come on
top of it (`envs.py`: VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS is off in 0.19 and on in 0.20)."""
COMPILER_BYTES = int(0.57 * GIB)
"""What the compiler tries out in the dummy run of a first start (`config/compilation.py`,
`benchmark_combo_kernel`): Llama 3.1 8B (0.31) peaked at so much beside the graphs as planned, three
times its batch."""
COMPILER_SINCE = 20
"""Version 0.N of the oldest log whose settings name it."""
SECOND_RUNNER_SINCE = 29
"""Version 0.N from which the second runner runs every model (`v1/worker/gpu/model_runner.py`).
From 0.26 it ran text models, and took no estimate of graphs before."""
BYTES_PER_LOGIT = 4
"""The second runner's logits: 16 bits each, and a copy where they are capped or gathered from
several cards (`model_executor/layers/logits_processor.py`). It samples from them as they are where
no request asks for more, as in the dummy run: a kernel writes one candidate for each 1,024
(`v1/worker/gpu/sample/sampler.py`, `apply_sampling_params`; `gumbel.py`). The same in 0.26, 0.30
and 0.32."""
KEPT_BYTES_PER_LOGIT = 4.125
"""What the second runner's sampler keeps for penalties, for each sequence and word: how often it
came in 32 bits, and one bit (`v1/worker/gpu/sample/penalties.py`). It is allocated after the
weights are measured (`v1/worker/gpu/model_runner.py`, `load_model`)."""
KEPT_COUNTS_SINCE = 27
"""Version 0.N that first counts all that is gone from the card (`utils/mem_utils.py`,
`total_consumed`), and so what the sampler keeps."""
FIRST_RUNNER_BYTES_PER_LOGIT = 14
"""The same of the first runner: 16 bits, the same in 32 bits, their probabilities, and a random
number each (`v1/sample/sampler.py`; `ops/topk_topp_sampler.py`, `random_sample`)."""
MOST_MULTIPROCESSORS = 192
"""Each multiprocessor keeps 32 bits a word beside them (`ops/topk_topp_triton.py`); no card has
more."""
OLD_BYTES_PER_LOGIT = 38.5
"""The same while top-k and top-p sorted (until vllm#33538, 0.16): 9.96 GiB for 1,024 sequences of
Gemma 3, 1.83 for 256 of Phi-4-mini."""
LARGEST_ITEM_TOKENS = 16_384
"""Tokens of the largest image or video of Qwen's encoders where nothing tells: an encoder is
measured with at least one (`multimodal/encoder_budget.py`)."""
VIDEO_FRAME_PAIRS = 7
"""Qwen2-VL and Qwen2.5-VL are measured with a video of up to 14 frames, each two as large as the
largest image, as far as the context holds them (`models/qwen2_vl.py`, `get_max_video_tokens`)."""
UNKNOWN_ENCODER_BYTES = 1 * GIB
"""An encoder that config.json gives no sizes of (audio); a rule of thumb."""
CHUNK_TOKENS = 32_768
"""Tokens that reached the experts at once until 0.16 (vllm#34086 did away with that)."""
WORKSPACES_STAY_SINCE = 12
"""Version 0.N from which the experts' workspaces stay allocated (`v1/worker/workspace.py`)."""
MARGIN_SHARE = 0.01
"""Of the budget, for kernels that want more than these estimates: a plan that says "fits" and does
not costs more than a hundredth of a card."""


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
    """Version 0.N of vLLM."""


@dataclass(frozen=True)
class Reserve:
    """What one card needs besides weights and cache, in bytes."""

    activation_bytes: int
    """Peak of the dummy run, with what experts and the sampler keep."""
    graph_bytes: int
    context_bytes: int
    margin_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.activation_bytes + self.graph_bytes + self.context_bytes + self.margin_bytes


def _tower(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The vision tower's part of ``config``."""
    tower = (config.get("thinker_config") or config).get("vision_config")
    return tower if isinstance(tower, Mapping) else None


def largest_image_tokens(config: Mapping[str, Any], processor: Mapping[str, Any]) -> int:
    """Tokens of the largest image that ``processor``, preprocessor_config.json, lets through.

    Qwen's image processor bounds the pixels, by max_pixels or size.longest_edge
    (`models/qwen2_vl.py`, `get_image_size_with_most_features`); for others longest_edge is a
    length.
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
    """Tokens of the image or video with which at least an encoder is measured."""
    image = run.image_tokens
    if not run.takes_videos:
        return image
    if config.get("model_type") in ("qwen2_vl", "qwen2_5_vl"):
        return image * max(1, min(VIDEO_FRAME_PAIRS, run.context_tokens // image))
    return max(image, LARGEST_ITEM_TOKENS)


def _patch_bytes(f: Fields, hidden: int) -> int:
    """What a vision tower keeps at its peak for each patch, in 16 bits.

    Two and a half feed-forward vectors and four hidden ones (1.5 GiB for Qwen3.5 4B). A gated tower
    keeps gate, up and their product, and beside the hidden vectors the patch's own values in 32
    bits (`models/qwen2_5_vl.py`, `Qwen2_5_VisionBlock`).
    """
    inner = f.largest("intermediate_size", "mlp_dim", default=4 * hidden)
    if f.get("hidden_act") != "silu":
        return 5 * inner + 8 * hidden
    values = f.get("in_channels", "in_chans", default=3) * f.need("patch_size") ** 2
    return 6 * inner + 8 * hidden + 4 * int(values * f.get("temporal_patch_size", default=1))


def encoder_bytes(config: Mapping[str, Any], run: Running) -> int:
    """Peak of a vision tower that encodes as many tokens as it is measured with.

    Each token is merged from several patches.
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
    """Whether experts compute in NVFP4, all of them or those of a file of several formats.

    Weights alone in NVFP4 (W4A16_NVFP4) are Marlin's (`quantization/modelopt.py`).
    """
    found = quantisation_config(config)
    inner = found.get("quantization") or found
    named = inner.get("quantized_layers") or found.get("quantized_layers") or {}
    if named:
        algorithms = {layer["quant_algo"] for name, layer in named.items() if "expert" in name}
        return "NVFP4" in algorithms
    return "nvfp4" in quantisation(config)


def _expert_bytes(config: Mapping[str, Any], hidden: int, dense: int, run: Running) -> int:
    """Both workspaces of a mixture of experts, in 16 bits.

    For each token and chosen expert one as wide as what is gated or the hidden vector, one as the
    result of gating or the hidden vector (`fused_moe/experts/triton_moe.py`, `workspace_shapes`).
    NVFP4 experts keep three hidden vectors more: sorted by expert, sorted back, and weighted
    (`fused_moe/experts/cutlass_moe.py`, `run_cutlass_moe_fp4`).
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
    """The sampler's peak, and what it keeps."""
    logits = run.sequences * vocabulary
    if run.vllm_minor >= SECOND_RUNNER_SINCE or _is_early_second_runner(config, run):
        # Beside what is gathered and its order by words, each card holds its own part.
        own = 2 / run.cards if run.cards > 1 else 0
        kept = KEPT_BYTES_PER_LOGIT if run.vllm_minor >= KEPT_COUNTS_SINCE else 0
        return int(logits * (BYTES_PER_LOGIT + own)), int(logits * kept)
    if run.vllm_minor <= 15:
        return int(logits * OLD_BYTES_PER_LOGIT), 0
    rows = min(run.sequences, MOST_MULTIPROCESSORS)
    return logits * FIRST_RUNNER_BYTES_PER_LOGIT + rows * vocabulary * 4, 0


def _activation_bytes(config: Mapping[str, Any], run: Running) -> int:
    """The peak: encoder, batch, compiler or sampler, and what experts and the sampler keep.

    Three hidden vectors and three of the feed-forward layer in 16 bits for each token of a batch:
    1.05 GiB for 32,768 tokens of Qwen2.5 0.5B, where vLLM measured 1.06.
    """
    f = Fields(text_config(config))
    hidden = f.need("hidden_size", "n_embd", "d_model")
    # Some multimodal files leave the vocabulary to code; none of them has more.
    vocabulary = int(f.get("vocab_size", "padded_vocab_size", default=262_208))
    dense = f.largest("intermediate_size", "ffn_hidden_size", "n_inner", default=4 * hidden)
    # A text is never divided where every token sees every other.
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
    """What each card needs besides weights and cache, without a margin."""
    graphs = 0
    counts = run.vllm_minor >= GRAPHS_COUNT_SINCE and not _is_early_second_runner(config, run)
    if counts and not run.enforce_eager:
        # vLLM captures up to twice as many sequences as run, at most 512.
        captured = min(512, 2 * run.sequences) / 512
        depth = Fields(text_config(config)).depth
        graphs = GRAPH_BASE_BYTES + int(depth * GRAPH_BYTES_PER_LAYER * captured)
    context = CONTEXT_BYTES + (run.cards - 1).bit_length() * COMMUNICATION_BYTES
    return Reserve(_activation_bytes(config, run), graphs, context)
