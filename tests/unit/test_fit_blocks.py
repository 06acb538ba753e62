"""vLLM's block arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from holdfast.fit.architecture import Attends, NotUnderstood, Remembers
from holdfast.fit.blocks import Pool, Scheduling, pool

FULL = Attends(4096)
WINDOW = Attends(4096, 128)
STATE = Remembers(1_097_728)


def groups(layers: Sequence[Attends | Remembers]) -> list[int]:
    return [group.block_tokens for group in pool(layers, Scheduling()).groups]


def test_layers_alike_make_one_group() -> None:
    found = pool([FULL] * 32, Scheduling())
    assert (found.block_bytes, len(found.groups)) == (32 * 16 * 4096, 1)
    assert found.blocks_per_request(17) == 2
    assert pool([FULL, Attends(1024)], Scheduling()).block_bytes == 16 * 5120


def test_groups_are_as_large_as_the_rarest_kind() -> None:
    assert groups([FULL] * 10 + [WINDOW] * 52) == [16] * 7
    # Nearly as many: padded to the commonest, not split to the rarest (gpt-oss with a draft).
    assert groups([FULL] * 13 + [WINDOW] * 12) == [16] * 2
    assert pool([FULL] * 13 + [WINDOW] * 12, Scheduling()).block_bytes == 13 * 16 * 4096


def test_smaller_pages_hold_more_tokens_or_are_padded() -> None:
    assert groups([FULL, Attends(2048, 128)]) == [16, 32]
    assert groups([FULL, Attends(3072, 128)]) == [16, 16]
    with pytest.raises(NotUnderstood, match="latent"):
        pool([FULL, Attends(3072, 128, is_latent=True)], Scheduling())


def test_a_window_keeps_itself_the_batches_in_flight_and_one_block() -> None:
    found = pool([FULL, WINDOW], Scheduling(batched_tokens=2048))
    assert found.blocks_per_request(131_072) == 8192 + (127 + 4096 + 15) // 16 + 1
    assert found.blocks_per_request(64) == 4 + 4 + 1
    before = pool([FULL, WINDOW], Scheduling(batched_tokens=2048, vllm_minor=24))
    assert before.blocks_per_request(131_072) == 8192 + (127 + 2048 + 15) // 16 + 1


def test_a_block_of_a_hybrid_covers_a_state() -> None:
    found = pool([Attends(2048)] * 12 + [STATE] * 36, Scheduling())
    assert found.block_tokens == 544
    assert (found.block_bytes, len(found.groups)) == (12 * 544 * 2048, 4)
    latent = pool([Attends(1152, is_latent=True)] * 7 + [STATE] * 20, Scheduling())
    assert latent.block_tokens % 128 == 0


@pytest.mark.parametrize(
    ("scheduling", "is_mamba2", "states"),
    [
        (Scheduling(), False, 2),
        (Scheduling(), True, 3),
        (Scheduling(vllm_minor=31), True, 2),
        (Scheduling(prefix_caching=False), True, 1),
        (Scheduling(draft_tokens=3), False, 5),
    ],
)
def test_states_of_a_sequence(scheduling: Scheduling, is_mamba2: bool, states: int) -> None:
    state = Remembers(4096, is_mamba2=is_mamba2)
    found = pool([FULL, state], scheduling)
    assert found.blocks_per_request(16) == 1 + states
    # Without any attention there is no prefix caching.
    alone = pool([state], scheduling)
    assert alone.blocks_per_request(16) == 1 + scheduling.draft_tokens


@pytest.mark.parametrize(
    "found",
    [
        pool([FULL] * 4, Scheduling()),
        pool([FULL] * 2 + [WINDOW] * 6, Scheduling()),
        pool([Attends(2048)] * 12 + [STATE] * 36, Scheduling()),
    ],
)
def test_the_longest_request_fits_and_one_token_more_does_not(found: Pool) -> None:
    for blocks in (1, 2, 50, 1000):
        longest = found.longest(blocks, 10_000_000)
        if longest:
            assert found.blocks_per_request(longest) <= blocks - 1
        assert found.blocks_per_request(longest + 1) > blocks - 1
    assert found.longest(10_000, 4096) == 4096
    assert found.blocks(-1) == 0
