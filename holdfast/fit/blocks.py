"""How vLLM divides the memory of the cache into blocks, and how many blocks a request needs.

The arithmetic is vLLM 0.32's (`v1/core/kv_cache_utils.py`, `v1/kv_cache_interface.py`,
`platforms/interface.py`), exact to the block. All groups of layers take blocks of one size from one
pool; block sizes are multiplied or padded until the blocks of every group have that size. The
tokens in vLLM's log are concurrency x context length, so they follow from the need of a request.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from holdfast.fit.architecture import Attends, Layer, NotUnderstood, Remembers

BLOCK_TOKENS = 16
"""vLLM's default --block-size on CUDA."""
LATENT_BLOCK_TOKENS = 64
"""Tokens in a block of FlashMLA (Hopper and later); Triton's kernel (Ampere) has 16."""
HYBRID_LATENT_ALIGNMENT = 128
"""Hybrid models with latent attention use multiples of this (`_align_hybrid_block_size`)."""


@dataclass(frozen=True)
class Scheduling:
    """Settings of the engine's scheduler that change how many blocks a request holds."""

    block_tokens: int | None = None
    """--block-size in tokens; None: the default of the kernels."""
    batched_tokens: int = 2048
    """--max-num-batched-tokens: a sliding window frees no block of a batch in flight."""
    batches_in_flight: int = 2
    """Two with asynchronous scheduling (the default), else one."""
    prefix_caching: bool = True
    """Whether prefixes are cached; then a recurrent layer keeps a second state, the one at the last
    full block."""
    draft_tokens: int = 0
    """Drafted tokens: a recurrent layer keeps a state for each."""
    vllm_minor: int = 32
    """N of version 0.N. The sources of 0.24, 0.27, 0.29, 0.31 and 0.32 were read. Since 0.25 or
    later, a window also keeps the batches in flight. Since 0.28 or 0.29, the longest request gets
    one block less. Since 0.32, Mamba 2 keeps a third state. Since 0.20, the logged tokens are
    concurrency x context; before, they were the blocks of one group (vllm#43308)."""


@dataclass(frozen=True)
class Group:
    """Layers that share a block table."""

    layer: Layer
    block_tokens: int

    def blocks(self, context_tokens: int, scheduling: Scheduling) -> int:
        """Blocks that one request of ``context_tokens`` takes in this group."""
        if isinstance(self.layer, Remembers):
            states = 1 + scheduling.draft_tokens
            if scheduling.prefix_caching:
                has_third = self.layer.is_mamba2 and scheduling.vllm_minor >= 32
                states += 2 if has_third else 1
            return states
        window = self.layer.window_tokens
        if window is None:
            return _up(context_tokens, self.block_tokens)
        batches = scheduling.batches_in_flight if scheduling.vllm_minor >= 25 else 1
        in_flight = scheduling.batched_tokens * batches
        kept = min(window - 1 + in_flight, context_tokens)
        # One more, because a window rarely begins at the start of a block.
        return _up(kept, self.block_tokens) + 1


@dataclass(frozen=True)
class Pool:
    """The cache of one card as a pool of equal blocks; an encoder's has no groups."""

    block_bytes: int
    groups: tuple[Group, ...]
    scheduling: Scheduling

    def blocks(self, available_bytes: int) -> int:
        """Blocks that fit in ``available_bytes``; without a cache vLLM counts one."""
        if not self.groups:
            return int(available_bytes >= 0)
        return max(0, available_bytes) // self.block_bytes

    def blocks_per_request(self, context_tokens: int) -> int:
        """Blocks that one request of this length holds at most."""
        return sum(group.blocks(context_tokens, self.scheduling) for group in self.groups)

    def concurrency(self, blocks: int, context_tokens: int) -> float:
        """Requests of this length at once (vLLM's "Maximum concurrency"); inf without a cache."""
        if not self.groups:
            return math.inf if blocks else 0
        return blocks / self.blocks_per_request(context_tokens)

    def longest(self, blocks: int, limit_tokens: int) -> int:
        """The longest request that ``blocks`` can hold, in tokens, up to ``limit_tokens``."""
        if not self.groups:
            return limit_tokens if blocks else 0
        usable = blocks - 1 if self.scheduling.vllm_minor >= 28 else blocks
        low, high = 0, limit_tokens
        while low < high:
            middle = (low + high + 1) // 2
            fits = self.blocks_per_request(middle) <= usable
            low, high = (middle, high) if fits else (low, middle - 1)
        return low

    def logged_tokens(self, blocks: int, context_tokens: int) -> int:
        """vLLM's "GPU KV cache size", in tokens."""
        if not self.groups:
            return 0
        if self.scheduling.vllm_minor < 20:
            return blocks // len(self.groups) * self.block_tokens
        return int(self.concurrency(blocks, context_tokens) * context_tokens)

    @property
    def block_tokens(self) -> int:
        """Tokens in a block of the attention layers (vLLM's `block_size` label)."""
        sizes = [g.block_tokens for g in self.groups if isinstance(g.layer, Attends)]
        return min(sizes, default=0)

    @property
    def has_state(self) -> bool:
        """Whether any group keeps recurrent states."""
        return any(isinstance(group.layer, Remembers) for group in self.groups)


def _up(a: int, b: int) -> int:
    return -(-a // b)


def pool(layers: Sequence[Layer], scheduling: Scheduling) -> Pool:
    """The pool that vLLM makes from these layers.

    Raises:
        NotUnderstood: the layers cannot share blocks.
    """
    if not layers:
        return Pool(0, (), scheduling)
    attending = [layer for layer in layers if isinstance(layer, Attends)]
    states = [layer for layer in layers if isinstance(layer, Remembers)]
    if not attending:
        # vLLM offers no prefix caching to models without any attention.
        scheduling = replace(scheduling, prefix_caching=False)
    tokens = _block_tokens(attending, states, scheduling)
    if not states and len({layer.window_tokens for layer in attending}) == 1:
        # All layers keep the same tokens: one group with one block table.
        return Pool(
            sum(layer.bytes_per_token for layer in attending) * tokens,
            (Group(attending[0], tokens),),
            scheduling,
        )
    pages = {layer: _page(layer, tokens) for layer in layers}
    page = max(pages.values())
    groups = []
    counts = Counter(layers)
    size = _group_size(list(counts.values()))
    for layer, count in counts.items():
        # A smaller page holds a multiple of the tokens if it divides the page, else it is padded.
        stretch = page // pages[layer] if page % pages[layer] == 0 else 1
        if isinstance(layer, Attends) and layer.is_latent and page % pages[layer]:
            raise NotUnderstood("layers with latent attention cannot be padded to share blocks")
        groups += [Group(layer, tokens * stretch)] * _up(count, size)
    return Pool(page * size, tuple(groups), scheduling)


def _page(layer: Layer, tokens: int) -> int:
    if isinstance(layer, Remembers):
        return layer.bytes_per_sequence
    return layer.bytes_per_token * tokens


def _block_tokens(attending: list[Attends], states: list[Remembers], scheduling: Scheduling) -> int:
    is_latent = any(layer.is_latent for layer in attending)
    tokens = scheduling.block_tokens or (LATENT_BLOCK_TOKENS if is_latent else BLOCK_TOKENS)
    if not states or not attending:
        return tokens
    # In a hybrid model, a block holds enough tokens that the keys and values of one layer are at
    # least as large as the state of one layer.
    step = max(tokens, HYBRID_LATENT_ALIGNMENT) if is_latent else tokens
    state = max(layer.bytes_per_sequence for layer in states)
    per_token = next(a.bytes_per_token for a in attending)
    return max(tokens, step * _up(state, step * per_token))


def _group_size(counts: list[int]) -> int:
    """Layers in a group: the count of the rarest kind, or of the commonest if they are close."""
    return max(counts) if max(counts) < min(counts) * 1.5 else min(counts)
