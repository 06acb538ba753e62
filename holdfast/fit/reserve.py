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

from holdfast.fit.architecture import Fields, is_encoder_only, text_config

MIB = 2**20
GIB = 2**30

CONTEXT_BYTES = int(0.35 * GIB)
"""What CUDA holds outside torch: 0.25 to 0.40 GiB since 0.19 counts all that is gone from the card
(`utils/mem_utils.py`, `total_consumed`)."""
OLD_CONTEXT_BYTES = int(0.2 * GIB)
"""The same before: 0.01 to 0.35 GiB (vllm#10517)."""
COMMUNICATION_BYTES = int(0.4 * GIB)
"""NCCL and custom all-reduce buffers for each doubling of the cards that share a model: Qwen3 235B
on four cards needs 0.8 GiB that nothing else explains."""
GRAPH_BASE_BYTES = int(0.4 * GIB)
GRAPH_BYTES_PER_LAYER = 15 * MIB
"""CUDA graphs: the first, and one layer's share when all sizes up to 512 are captured. vLLM
extrapolates from the largest two (`v1/worker/gpu/cudagraph_utils.py`,
`profile_cudagraph_memory`): 0.64 GiB for the 32 layers of Qwen3.5 4B, 0.88 for the 30 of Gemma 4
26B."""
GRAPHS_COUNT_SINCE = 19
"""Version 0.N that first takes its estimate of the graphs off the budget; before, they come on
top of it."""
SECOND_RUNNER_SINCE = 29
"""Version 0.N from which the second runner runs every model (`v1/worker/gpu/model_runner.py`).
From 0.26 it ran text models, and took no estimate of graphs before."""
BYTES_PER_LOGIT = 8
"""The second runner's logits: 16 bits each, three times as many with a soft cap, twice when
gathered from several cards (`model_executor/layers/logits_processor.py`); it samples from them as
they are where no request asks for more, as in the dummy run (`v1/worker/gpu/sample/sampler.py`,
`apply_sampling_params`). Set from the source, after the judging half was judged once (docs/fit.md).
"""
FIRST_RUNNER_BYTES_PER_LOGIT = 20
"""The same of the first runner, which sampled with top-k and top-p: 19.1 for Gemma 4 26B (0.20)."""
OLD_BYTES_PER_LOGIT = 38.5
"""The same while top-k and top-p sorted (until vllm#33538, 0.16): 9.96 GiB for 1,024 sequences of
Gemma 3, 1.83 for 256 of Phi-4-mini."""
LARGEST_ITEM_TOKENS = 16_384
"""Tokens of the largest image of Qwen's encoders, with which at least they are measured
(`multimodal/encoder_budget.py`)."""
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
    vllm_minor: int = 32
    """Version 0.N of vLLM."""


@dataclass(frozen=True)
class Reserve:
    """What one card needs besides weights and cache, in bytes."""

    activation_bytes: int
    """Peak of the dummy run, with the workspaces of experts."""
    graph_bytes: int
    context_bytes: int
    margin_bytes: int = 0

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.activation_bytes + self.graph_bytes + self.context_bytes + self.margin_bytes


def encoder_bytes(config: Mapping[str, Any], batched_tokens: int) -> int:
    """Peak of a vision tower that encodes as many tokens as it is measured with.

    Each token is merged from several patches; a patch keeps two and a half feed-forward vectors
    and four hidden ones in 16 bits (1.5 GiB for Qwen3.5 4B).
    """
    holder = config.get("thinker_config") or config
    tower = holder.get("vision_config")
    if not isinstance(tower, Mapping):
        return UNKNOWN_ENCODER_BYTES if holder.get("audio_config") is not None else 0
    f = Fields(tower)
    hidden = f.largest("hidden_size", "embed_dim", "width", default=0)
    if not hidden:
        return UNKNOWN_ENCODER_BYTES
    inner = f.largest("intermediate_size", "mlp_dim", default=4 * hidden)
    tokens, patches = batched_tokens, 1.0
    if merged := f.get("spatial_merge_size"):
        tokens, patches = max(tokens, LARGEST_ITEM_TOKENS), merged**2
    elif pooled := f.get("pooling_kernel_size"):
        patches = pooled**2
    elif per_image := holder.get("mm_tokens_per_image"):
        patches = (f.need("image_size") // f.need("patch_size")) ** 2 / per_image
    elif ratio := holder.get("downsample_ratio") or f.get("pixel_shuffle_ratio"):
        patches = 1 / ratio**2
    return int(tokens * patches * (5 * inner + 8 * hidden))


def _expert_bytes(f: Fields, hidden: int, dense: int, run: Running) -> int:
    """Both workspaces of a mixture of experts, in 16 bits.

    For each token and chosen expert one as wide as what is gated or the hidden vector, one as the
    result of gating or the hidden vector (`fused_moe/experts/triton_moe.py`, `workspace_shapes`).
    """
    chosen = f.largest(
        *("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k"),
        default=0,
    )
    expert = f.largest("moe_intermediate_size", default=dense) // run.cards
    tokens = run.batched_tokens if run.vllm_minor > 16 else min(run.batched_tokens, CHUNK_TOKENS)
    return 2 * tokens * chosen * (max(2 * expert, hidden) + max(expert, hidden))


def _is_early_second_runner(config: Mapping[str, Any], run: Running) -> bool:
    return 26 <= run.vllm_minor < SECOND_RUNNER_SINCE and encoder_bytes(config, 1) == 0


def _activation_bytes(config: Mapping[str, Any], run: Running) -> int:
    """The peak: encoder, batch or sampler, and the workspaces of experts.

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
    experts = _expert_bytes(f, hidden, dense, run)
    inner = 0 if experts else 3 * dense // run.cards
    batch = tokens * 2 * (3 * hidden + inner)
    per_logit: float = BYTES_PER_LOGIT
    if not (run.vllm_minor >= SECOND_RUNNER_SINCE or _is_early_second_runner(config, run)):
        per_logit = FIRST_RUNNER_BYTES_PER_LOGIT if run.vllm_minor > 15 else OLD_BYTES_PER_LOGIT
    sampler = 0 if is_encoder else int(run.sequences * vocabulary * per_logit)
    encoder = 0 if run.text_only else encoder_bytes(config, run.batched_tokens)
    if run.vllm_minor < WORKSPACES_STAY_SINCE:
        return max(batch + experts, sampler, encoder)
    return max(batch, sampler, encoder) + experts


def estimate(config: Mapping[str, Any], run: Running) -> Reserve:
    """What each card needs besides weights and cache, without a margin."""
    graphs = 0
    counts = run.vllm_minor >= GRAPHS_COUNT_SINCE and not _is_early_second_runner(config, run)
    if counts and not run.enforce_eager:
        # vLLM captures up to twice as many sequences as run, at most 512.
        captured = min(512, 2 * run.sequences) / 512
        depth = Fields(text_config(config)).depth
        graphs = GRAPH_BASE_BYTES + int(depth * GRAPH_BYTES_PER_LAYER * captured)
    context = CONTEXT_BYTES if run.vllm_minor >= GRAPHS_COUNT_SINCE else OLD_CONTEXT_BYTES
    doublings = (run.cards - 1).bit_length()
    return Reserve(
        _activation_bytes(config, run), graphs, context + doublings * COMMUNICATION_BYTES
    )
