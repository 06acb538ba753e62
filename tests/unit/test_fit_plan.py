"""The whole plan: cards, what binds, what would fit, and the command."""

from __future__ import annotations

import io
import itertools
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from holdfast.fit import Card, EngineSettings, Fit, Model, NotUnderstood, load, plan, table
from holdfast.fit.__main__ import main
from holdfast.fit.planner import reserve
from holdfast.fit.weights import Weights

DATA = Path("tests/unit/data/fit")
GLM = DATA / "glm-4.5-air-awq"
RTX_3090 = Card(name="3090", total_mib=24576)


def planned(name: str, cards: list[Card], **settings: Any) -> Fit:
    known = Weights(total_bytes=10 * 2**30)
    engine = EngineSettings(tensor_parallel=len(cards), **settings)
    return plan(load(DATA / name, known), cards, engine)


def changed(engine: EngineSettings, words: str) -> EngineSettings:
    """The settings that one of `Fit.nearest` speaks of."""
    pairs = dict(part.split(" ") for part in words.split(", "))
    values = {**engine.model_dump(), **pairs}
    return EngineSettings.model_validate(values, strict=False)


@pytest.mark.parametrize(
    "settings", [{}, {"max_num_seqs": 8}, {"max_num_batched_tokens": 8192}, {"utilisation": 0.88}]
)
def test_glm_on_four_3090_is_refused_by_default_and_every_way_out_fits(
    settings: dict[str, Any],
) -> None:
    model = load(GLM)
    engine = EngineSettings(tensor_parallel=4, max_model_len=131_072, **settings)
    fit = plan(model, [RTX_3090] * 4, engine)
    assert not fit.fits
    assert re.search(r"holds one request of|exceed the budget", fit.binds)
    assert fit.nearest
    for words in fit.nearest:
        other = changed(engine, words)
        assert plan(model, [RTX_3090] * other.tensor_parallel, other).fits, words


def test_the_seeds_models_fit_where_they_are_said_to() -> None:
    glm = EngineSettings(
        tensor_parallel=4,
        max_model_len=131_072,
        kv_dtype="fp8",
        max_num_seqs=8,
        utilisation=0.92,
    )
    assert plan(load(GLM), [RTX_3090] * 4, glm).fits
    # NVFP4 weights of 30 G parameters; 31.4 GiB usable (field notes 10).
    rtx_5090 = Card(total_mib=32607, usable_mib=int(31.4 * 1024))
    nano = load(DATA / "nemotron-3-nano-30b-a3b-fp8", Weights(total_bytes=int(18.6 * 2**30)))
    assert plan(nano, [rtx_5090], EngineSettings(max_model_len=180_000)).fits


def test_budget_weights_reserve_and_cache_add_up() -> None:
    fit = planned("qwen3-14b", [Card(total_mib=49152)])
    card = fit.cards[0]
    assert card.budget_bytes == int(int(49152 * 0.98) * 2**20 * 0.80)
    parts = card.weight_bytes + card.reserve.total_bytes + card.cache_bytes
    assert parts == card.budget_bytes
    assert fit.context_tokens == 40_960


def test_the_card_with_least_memory_decides() -> None:
    alike = planned("qwen3-14b", [RTX_3090] * 2)
    uneven = planned("qwen3-14b", [Card(total_mib=49152), RTX_3090])
    assert uneven.blocks == alike.blocks


@pytest.mark.parametrize(
    ("settings", "grows"),
    [
        ({"enforce_eager": True}, True),
        ({"kv_dtype": "fp8"}, True),
        ({"max_num_seqs": 8}, True),
        ({"utilisation": 0.9}, True),
        ({"max_num_batched_tokens": 32768}, False),
        ({"utilisation": 0.7}, False),
        ({"reserve_mib": 8000}, False),
    ],
)
def test_settings_move_the_cache(settings: dict[str, Any], grows: bool) -> None:
    before = planned("qwen3-14b", [RTX_3090]).blocks
    after = planned("qwen3-14b", [RTX_3090], **settings).blocks
    assert (after > before) if grows else (after < before)


def test_cards_that_share_a_model_talk_to_one_another_in_memory() -> None:
    alone = planned("qwen3-14b", [RTX_3090]).cards[0].reserve
    shared = planned("qwen3-14b", [RTX_3090] * 2).cards[0].reserve
    assert (shared.context_bytes - alone.context_bytes) / 2**30 == pytest.approx(0.4, abs=0.01)


def test_each_expert_that_is_chosen_keeps_its_part_of_a_batch() -> None:
    settings = EngineSettings(max_num_batched_tokens=16384)
    model = load(DATA / "deepseek-v3", Weights(total_bytes=1))
    # By hand: 16 bits of three hidden vectors, and for each of 8 experts two of them, which are
    # wider than both halves of what is gated and than its result.
    token_bytes = 2 * (3 * 7168 + 8 * (7168 + 7168))
    # Beside them the sampler keeps counts and masks of 256 sequences.
    peak = 16384 * token_bytes + 256 * 129_280 * 4.125
    assert reserve(model, settings).activation_bytes == peak
    # One dense layer as wide as the model's own first would keep less.
    dense = replace(model, config={**model.config, "num_experts_per_tok": 0})
    assert reserve(dense, settings).activation_bytes < peak


def test_nvfp4_experts_are_found_among_layers_of_several_formats() -> None:
    settings = EngineSettings(max_num_batched_tokens=16384)
    model = load(DATA / "deepseek-v3", Weights(total_bytes=1))

    def peak(algorithm: str) -> int:
        named = {"model.layers.9.mlp.experts*": {"quant_algo": algorithm}}
        quantised = {
            "quant_method": "modelopt",
            "quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": named},
        }
        changed = {**model.config, "quantization_config": quantised}
        return reserve(replace(model, config=changed), settings).activation_bytes

    # Three hidden vectors in 16 bits more for each of 8 experts; none where Marlin computes.
    assert peak("NVFP4") - peak("W4A16_NVFP4") == 16384 * 8 * 3 * 7168 * 2
    assert peak("W4A16_NVFP4") == peak("FP8")


def peak_gib(name: str, cards: int = 1, **settings: Any) -> float:
    fit = planned(name, [Card(total_mib=97887)] * cards, **settings)
    return fit.cards[0].reserve.activation_bytes / 2**30


def test_encoders_are_measured_unless_left_out() -> None:
    # 16,384 tokens of four patches each, 5 x 4,304 + 8 x 1,152 bytes a patch, by hand.
    few: dict[str, Any] = {"max_num_seqs": 8, "vllm_minor": 28, "enforce_eager": True}
    with_encoder = peak_gib("qwen3.8-27b", **few)
    assert with_encoder == pytest.approx(65_536 * 30_736 / 2**30)
    assert peak_gib("qwen3.8-27b", text_only=True, **few) < with_encoder / 4
    # What is measured is at least a batch: of nine patches a token, and of sixteen.
    per_patch = 5 * 4304 + 8 * 1152
    gemma_4 = peak_gib("gemma-4-26b-a4b", max_num_batched_tokens=8192, **few)
    experts = 2 * 8192 * 8 * (2816 + 2816)
    assert gemma_4 == pytest.approx((8192 * 9 * per_patch + experts) / 2**30)
    gemma_3 = peak_gib("gemma-3-27b", max_num_batched_tokens=8192, **few)
    assert gemma_3 == pytest.approx(8192 * 16 * per_patch / 2**30)


def encoder_tokens(name: str, patch_bytes: int, **settings: Any) -> float:
    peak = peak_gib(name, max_num_seqs=8, vllm_minor=28, enforce_eager=True, **settings)
    return peak * 2**30 / patch_bytes / 4


def test_an_encoder_is_measured_with_the_largest_image_that_its_files_allow() -> None:
    # 1,310,720 pixels are 1,280 tokens of 32 x 32; vLLM logged six of them in 8,192 tokens.
    name, patch_bytes = "qwen3-vl-embedding-2b", 5 * 4096 + 8 * 1024
    tokens = encoder_tokens(name, patch_bytes, max_num_batched_tokens=1024, takes_videos=False)
    assert tokens == pytest.approx(1280)
    batch = encoder_tokens(name, patch_bytes, max_num_batched_tokens=8192, takes_videos=False)
    assert batch == pytest.approx(8192)
    # A video may be larger than that.
    assert encoder_tokens(name, patch_bytes) == pytest.approx(16_384)


@pytest.mark.parametrize(
    "processor",
    [
        {},
        {"image_processor_type": "Qwen2VLImageProcessor"},
        # There the longest edge is a length.
        {"image_processor_type": "PixtralImageProcessor", "size": {"longest_edge": 1540}},
    ],
)
def test_an_image_whose_pixels_nothing_bounds_is_as_large_as_qwens(
    processor: dict[str, Any],
) -> None:
    model = load(DATA / "qwen3-vl-embedding-2b", Weights(total_bytes=1))
    settings = EngineSettings(max_num_seqs=8, vllm_minor=28, takes_videos=False)
    held = reserve(replace(model, processor=processor), settings)
    assert held.activation_bytes == 65_536 * (5 * 4096 + 8 * 1024)


@pytest.mark.parametrize(
    ("context", "videos", "tokens"),
    [
        # "a budget of 114688 tokens, and profiled with 1 video items" (0.23).
        (128_000, True, 114_688),
        (40_000, True, 32_768),
        (4096, True, 16_384),
        (128_000, False, 16_384),
    ],
)
def test_qwen_2_encoders_are_measured_with_a_video_as_long_as_the_context_holds(
    context: int, videos: bool, tokens: int
) -> None:
    # A gated tower: gate, up and their product; four hidden vectors; the patch itself in 32 bits.
    patch_bytes = 6 * 3420 + 8 * 1280 + 4 * 3 * 2 * 14**2
    settings: dict[str, Any] = {"max_model_len": context, "takes_videos": videos}
    assert encoder_tokens("qwen2.5-vl-7b", patch_bytes, **settings) == pytest.approx(tokens)


def test_an_encoder_of_unknown_size_takes_a_rule_of_thumb() -> None:
    model = load(DATA / "qwen3-0.6b", Weights(total_bytes=1))
    for encoder_config in ({"audio_config": {"x": 1}}, {"vision_config": {"x": 1}}):
        heard = replace(model, config={**model.config, **encoder_config})
        few = EngineSettings(max_num_seqs=8, vllm_minor=28, enforce_eager=True)
        assert reserve(heard, few).activation_bytes == 2**30
        deaf = reserve(heard, few.model_copy(update={"text_only": True}))
        assert deaf.activation_bytes < 2**29


def test_encoder_batch_and_sampler_run_one_after_another() -> None:
    # The largest counts, not their sum: here the sampler of 1,024 sequences.
    settings: dict[str, Any] = {"max_num_seqs": 1024, "vllm_minor": 25}
    assert peak_gib("qwen3.8-27b", text_only=True, **settings) == pytest.approx(
        peak_gib("qwen3.8-27b", **settings)
    )


@pytest.mark.parametrize(
    ("name", "settings", "logged_gib"),
    [
        # Peaks that vLLM logged; 1,024 sequences are its default on cards of 70 GiB and more.
        ("gemma-3-4b", {"max_num_seqs": 1024, "max_num_batched_tokens": 16384}, 9.96),
        ("phi-4-mini", {"max_num_seqs": 256}, 1.83),
        ("qwen3-8b", {"max_num_seqs": 256}, 1.40),
        ("qwen2.5-0.5b", {"max_num_batched_tokens": 32768}, 1.06),
    ],
)
def test_many_sequences_need_room_to_sample(
    name: str, settings: dict[str, Any], logged_gib: float
) -> None:
    version = 26 if name == "qwen2.5-0.5b" else 10
    assert peak_gib(name, vllm_minor=version, **settings) == pytest.approx(logged_gib, rel=0.05)


def test_experts_keep_their_workspaces() -> None:
    # Two of 8 hidden vectors for each token stay, by hand; beside them the sampler's peak.
    sampler = 256 * 151_936 * (4 + 4.125)
    workspaces = 2 * 2048 * 8 * (2048 + 2048)
    peak = peak_gib("qwen3-30b-a3b", enforce_eager=True)
    assert peak == pytest.approx((sampler + workspaces) / 2**30)
    # Before 0.12 they went with the batch.
    assert peak_gib("qwen3-30b-a3b", vllm_minor=11) == pytest.approx(256 * 151_936 * 38.5 / 2**30)


@pytest.mark.parametrize(
    ("minor", "bytes_per_logit"),
    # Of the first runner, what each of 192 multiprocessors keeps is spread over 1,024 sequences;
    # of the second, what its sampler keeps counts since 0.27.
    [(15, 38.5), (16, 14.75), (25, 14.75), (26, 4), (27, 8.125), (28, 8.125), (29, 8.125)],
)
def test_each_runner_samples_in_its_own_way(minor: int, bytes_per_logit: float) -> None:
    peak = peak_gib("qwen3-0.6b", max_num_seqs=1024, vllm_minor=minor)
    assert peak == pytest.approx(1024 * 151_936 * bytes_per_logit / 2**30)
    # The second runner came later to models that see.
    sees = peak_gib("qwen3.8-27b", max_num_seqs=1024, text_only=True, vllm_minor=minor)
    later = 14.75 if 15 < minor < 29 else bytes_per_logit
    assert sees == pytest.approx(1024 * 248_320 * later / 2**30)


def test_each_of_several_cards_holds_its_part_of_the_logits_too() -> None:
    settings: dict[str, Any] = {"max_num_seqs": 1024, "vllm_minor": 26}
    peaks = [peak_gib("qwen3-0.6b", cards, **settings) for cards in (1, 2, 4)]
    logits = 1024 * 151_936 / 2**30
    assert peaks == pytest.approx([4 * logits, 5 * logits, 4.5 * logits])


@pytest.mark.parametrize(
    ("minor", "eager", "compiles"), [(19, False, False), (20, False, True), (20, True, False)]
)
def test_what_the_compiler_tries_out_is_measured_where_it_is_more_than_a_batch(
    minor: int, eager: bool, compiles: bool
) -> None:
    settings: dict[str, Any] = {"max_num_seqs": 8, "enforce_eager": eager, "vllm_minor": minor}
    assert (peak_gib("qwen3-8b", **settings) == pytest.approx(0.57)) == compiles
    large = peak_gib("qwen3-8b", max_num_batched_tokens=32_768, **settings)
    assert large == pytest.approx(32_768 * 2 * 3 * (4096 + 12_288) / 2**30)


def test_nvfp4_experts_keep_their_tokens_sorted() -> None:
    model = load(DATA / "qwen3.6-35b-a3b-nvfp4", Weights(total_bytes=1))
    plain = replace(model, config={**model.config, "quantization_config": None})
    held = [reserve(each, EngineSettings()).activation_bytes for each in (model, plain)]
    # Three hidden vectors in 16 bits for each of 2,048 tokens and 8 experts.
    assert held[0] - held[1] == 3 * 2 * 2048 * 8 * 2048


def test_old_versions_gave_experts_chunks() -> None:
    settings: dict[str, Any] = {"max_num_batched_tokens": 128_000, "max_num_seqs": 8}
    old, new = (peak_gib("deepseek-v3", vllm_minor=minor, **settings) for minor in (16, 17))
    assert new - old == pytest.approx(2 * (128_000 - 32_768) * 8 * (7168 + 7168) / 2**30)


@pytest.mark.parametrize(
    ("name", "minor", "counts"),
    [
        ("llama-3.1-8b", 19, False),
        ("llama-3.1-8b", 20, True),
        ("llama-3.1-8b", 26, False),
        ("llama-3.1-8b", 28, False),
        ("qwen3.8-27b", 28, True),
        ("llama-3.1-8b", 29, True),
    ],
)
def test_graphs_come_off_the_budget_where_vllm_estimates_them(
    name: str, minor: int, counts: bool
) -> None:
    held = planned(name, [Card(total_mib=97887)], vllm_minor=minor).cards[0].reserve
    assert (held.graph_bytes > 0) == counts
    eager = planned(name, [Card(total_mib=97887)], vllm_minor=minor, enforce_eager=True)
    assert eager.cards[0].reserve.graph_bytes == 0


def test_graphs_of_gemma_4_are_what_vllm_estimates() -> None:
    # 0.88 GiB of 51 sizes (0.20, H200).
    fit = planned("gemma-4-26b-a4b", [Card(total_mib=143_771)], max_num_seqs=1024)
    assert fit.cards[0].reserve.graph_bytes / 2**30 == pytest.approx(0.88, rel=0.1)
    few = planned("gemma-4-26b-a4b", [Card(total_mib=143_771)], max_num_seqs=1)
    assert few.cards[0].reserve.graph_bytes < fit.cards[0].reserve.graph_bytes / 2


def test_each_doubling_of_the_cards_takes_room_to_talk() -> None:
    held = [
        planned("qwen3-14b", [Card(total_mib=97887)] * cards).cards[0].reserve.context_bytes
        for cards in (1, 2, 4, 8)
    ]
    assert [(size - held[0]) / 2**30 for size in held] == pytest.approx([0, 0.4, 0.8, 1.2])


def test_a_hundredth_of_the_budget_is_kept_unless_the_reserve_was_measured() -> None:
    (guessed,) = planned("qwen3-14b", [RTX_3090]).cards
    assert guessed.reserve.margin_bytes == guessed.budget_bytes // 100
    (measured,) = planned("qwen3-14b", [RTX_3090], reserve_mib=2000).cards
    assert measured.reserve.total_bytes == 2000 * 2**20


def test_an_encoder_takes_whole_texts_and_samples_nothing() -> None:
    settings = EngineSettings(max_num_seqs=1024, max_model_len=8192, enforce_eager=True)
    assert reserve(encoder(), settings).activation_bytes == 8192 * 2 * 3 * (1024 + 4096)


def test_a_hybrid_needs_a_block_for_each_sequence() -> None:
    card = [Card(total_mib=97887)]
    # vLLM refused Qwen3.8 27B with 939 blocks and 1024 sequences (vllm-project/recipes#831).
    settings: dict[str, Any] = {"kv_cache_mib": 939 * 51_380_224 / 2**20, "max_num_seqs": 1024}
    fit = planned("qwen3.8-27b", card, **settings)
    assert (fit.fits, fit.blocks) == (False, 939)
    assert "each of 1024 sequences needs a state" in fit.binds
    assert planned("qwen3.8-27b", card, **{**settings, "max_num_seqs": 939}).fits
    assert planned("qwen3.8-27b", card, **settings, enforce_eager=True).fits


def test_weights_over_the_budget_are_named() -> None:
    fit = planned("qwen3-14b", [Card(total_mib=8192)])
    assert not fit.fits
    assert re.match(r"weights and reserve exceed the budget by \d+\.\d\d GiB", fit.binds)
    assert fit.longest_tokens == 0


def test_yarn_stretches_the_context() -> None:
    assert load(DATA / "gpt-oss-120b").longest_tokens == 131_072
    assert load(DATA / "llama-3.1-8b").longest_tokens == 131_072


def test_a_model_that_tells_no_context_needs_one() -> None:
    model = load(DATA / "gemma-3-27b", Weights(total_bytes=1))
    text = {k: v for k, v in model.config["text_config"].items() if not k.startswith("max_pos")}
    silent = replace(model, config={**model.config, "text_config": text})
    with pytest.raises(NotUnderstood, match="give max_model_len"):
        plan(silent, [RTX_3090], EngineSettings())
    assert plan(silent, [RTX_3090], EngineSettings(max_model_len=8192)).context_tokens == 8192


def test_figures_given_for_each_layer_count_as_the_largest() -> None:
    # Hunyuan A13B lists its experts' figures layer by layer.
    model = load(DATA / "qwen3-14b", Weights(total_bytes=1))
    moe = {"moe_topk": 8, "moe_intermediate_size": 3072, "num_experts": 64}
    listed = {key: [value // 2, value] for key, value in moe.items()}
    once, by_layer = (
        plan(replace(model, config={**model.config, **change}), [RTX_3090], EngineSettings())
        for change in (moe, listed)
    )
    assert once.cards == by_layer.cards


BGE_M3 = {
    "architectures": ["XLMRobertaModel"],
    "model_type": "xlm-roberta",
    "num_hidden_layers": 24,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 250002,
    "max_position_embeddings": 8194,
}


def encoder(**change: Any) -> Model:
    return Model("encoder", {**BGE_M3, **change}, Weights(total_bytes=int(1.06 * 2**30)))


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"architectures": ["XLMRobertaForSequenceClassification"]},
        {"model_type": "modernbert", "layer_types": ["sliding_attention", "full_attention"] * 12},
        # EmbeddingGemma: a decoder that looks both ways.
        {"model_type": "gemma3_text", "use_bidirectional_attention": True, "sliding_window": 512},
        {"model_type": "qwen3", "is_causal": False},
        {"model_type": "llama_bidirec"},
        {"model_type": "qwen3", "architectures": ["VoyageQwen3BidirectionalEmbedModel"]},
        {"model_type": "embedding_gemma2_text", "sliding_window": 512},
        {"model_type": "siglip_text_model"},
        # Known by segments of a text, or by words that are masked in the middle of it.
        {"model_type": "camembert", "type_vocab_size": 1},
        {"model_type": "eurobert", "architectures": ["EuroBertForMaskedLM"]},
        {"model_type": "mpnet", "architectures": ["MPNetForMaskedLM"]},
        # Jina's smallest embedder; ColQwen's declaration.
        {"architectures": ["JinaEmbeddingsV5Model"], "model_type": "x", "is_decoder": False},
        {"model_type": "qwen3_5", "retrieval_attention_contract": "bidirectional"},
    ],
)
def test_encoders_keep_no_cache(change: dict[str, Any]) -> None:
    fit = plan(encoder(**change), [Card(total_mib=8192)], EngineSettings(max_model_len=8192))
    assert fit.fits
    assert (fit.layers, fit.bytes_per_token, fit.cache_tokens) == ((), 0, 0)
    assert fit.longest_tokens == 8194
    assert "an encoder has no cache" in fit.binds
    console = Console(width=120, file=io.StringIO())
    console.print(table(fit))
    assert "the cache" not in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_reranker_that_looks_back_only_keeps_its_cache() -> None:
    fit = plan(encoder(model_type="qwen3"), [Card(total_mib=8192)], EngineSettings())
    assert fit.bytes_per_token == 24 * 2 * 16 * 64 * 2


def test_an_image_that_is_seen_both_ways_does_not_make_an_encoder() -> None:
    # PaliGemma: its Gemma decodes, and vLLM keeps its cache (`gemma.py` reads no such key).
    gemma = {"model_type": "gemma", "architectures": None, "use_bidirectional_attention": True}
    model = encoder(**gemma)
    assert plan(model, [Card(total_mib=8192)], EngineSettings()).bytes_per_token > 0


def test_a_context_beyond_the_models_own_does_not_fit() -> None:
    # vLLM refuses it at start (`config/model.py`, `_get_and_verify_max_len`).
    fit = planned("llama-3-8b", [Card(total_mib=81920)], max_model_len=32_768)
    assert not fit.fits
    assert fit.binds == "the model reads at most 8,192 tokens"
    assert fit.nearest[0] == "max_model_len 8192"


@pytest.mark.parametrize(
    ("keys", "tokens"),
    [
        ({"max_position_embeddings": 8192, "model_max_length": 131_072}, 131_072),
        ({"max_position_embeddings": None, "n_positions": 1024}, 1024),
        ({"max_position_embeddings": None, "max_sequence_length": 2048}, 2048),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 4 * 40_960),
        ({"rope_scaling": {"type": "llama3", "factor": 8.0}}, 40_960),
        ({"rope_parameters": {"full_attention": {"rope_type": "default"}}}, 40_960),
    ],
)
def test_the_longest_context_is_read_where_vllm_reads_it(keys: dict[str, Any], tokens: int) -> None:
    model = load(DATA / "qwen3-14b", Weights(total_bytes=1))
    told = {k: v for k, v in {**model.config, **keys}.items() if v is not None}
    assert replace(model, config=told).longest_tokens == tokens


def test_a_decoder_that_caches_nothing_is_refused() -> None:
    kinds = {"model_type": "qwen3", "layer_types": ["mlp"] * 24}
    with pytest.raises(NotUnderstood, match="no layer of this model uses a cache"):
        plan(encoder(**kinds), [RTX_3090], EngineSettings())


def test_an_encoder_may_be_too_large() -> None:
    fit = plan(encoder(), [Card(total_mib=1024)], EngineSettings())
    assert not fit.fits
    assert fit.longest_tokens == 0
    assert "exceed the budget" in fit.binds


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        # Whisper has no max_position_embeddings either, but that is not why it is refused.
        ({"model_type": "whisper", "is_encoder_decoder": True}, "'whisper' is an encoder-decoder"),
        (
            {"model_type": "openvla", "text_config": {"model_type": "llama", "vocab_size": 32064}},
            "the text_config of model type 'openvla' has no num_attention_heads",
        ),
    ],
)
def test_the_reason_for_the_refusal_comes_first(config: dict[str, Any], sentence: str) -> None:
    with pytest.raises(NotUnderstood, match=sentence):
        plan(Model("m", config, Weights(total_bytes=1)), [RTX_3090], EngineSettings())


UNEXPECTED: list[Any] = ["29 GB", -1, 0, 1.5, [], ["x"], {}, {"x": 1}, True]


@pytest.mark.parametrize("name", sorted(path.parent.name for path in DATA.glob("*/config.json")))
def test_no_value_of_a_description_ends_in_a_traceback(name: str) -> None:
    model = load(DATA / name, Weights(total_bytes=2**30))
    inner = next((k for k in ("text_config",) if k in model.config), None)
    known = model.config[inner] if inner else model.config
    for key, value in itertools.product(known, UNEXPECTED):
        changed_values = {**known, key: value}
        config = {**model.config, inner: changed_values} if inner else changed_values
        try:
            fit = plan(replace(model, config=config), [RTX_3090], EngineSettings(max_num_seqs=8))
            table(fit)
        except NotUnderstood as error:
            assert len(str(error).splitlines()) == 1, (key, value)


def test_cards_and_tensor_parallel_must_agree() -> None:
    with pytest.raises(NotUnderstood, match="name as many cards"):
        plan(load(GLM), [RTX_3090], EngineSettings(tensor_parallel=4))


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match=r"no config\.json"):
        load(tmp_path)
    (tmp_path / "model.gguf").touch()
    with pytest.raises(NotUnderstood, match=r"llama\.cpp"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(NotUnderstood, match="not JSON"):
        load(tmp_path)
    with pytest.raises(NotUnderstood, match=r"no config\.json"):
        load(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(NotUnderstood, match="not the description"):
        load(tmp_path)


def test_the_largest_image_may_stand_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = DATA / "qwen3-vl-embedding-2b"
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    settings = EngineSettings(takes_videos=False)
    known = Weights(total_bytes=1)
    unbounded = reserve(load(tmp_path, known), settings).activation_bytes
    processor = tmp_path / "preprocessor_config.json"
    processor.write_text((folder / processor.name).read_text())
    assert reserve(load(tmp_path, known), settings).activation_bytes < unbounded / 2
    processor.write_text("{")
    with pytest.raises(NotUnderstood, match=r"preprocessor_config\.json is not JSON"):
        load(tmp_path, known)


def test_number_formats_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    config = json.loads((DATA / "llama-3.1-8b" / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    known = Weights(total_bytes=1)
    plain = load(tmp_path, known)
    quantisation = {
        "producer": {"name": "modelopt"},
        "quantization": {"kv_cache_quant_algo": "FP8"},
    }
    (tmp_path / "hf_quant_config.json").write_text(json.dumps(quantisation))
    calibrated = load(tmp_path, known)
    card = [Card(total_mib=24576)]
    tokens = [plan(model, card, EngineSettings()).bytes_per_token for model in (plain, calibrated)]
    assert tokens[1] * 2 == tokens[0]
    # config.json has the first word.
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path, known).config["quantization_config"] == {"quant_method": "fp8"}


def test_the_table_shows_every_card_and_the_way_out() -> None:
    console = Console(width=120, file=io.StringIO())
    fit = plan(load(GLM), [RTX_3090] * 4, EngineSettings(tensor_parallel=4, max_model_len=131_072))
    console.print(table(fit))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert shown.count("3090") == 4
    assert "awq int4" in shown
    # The parts of the budget add up to it.
    row = next(line for line in shown.splitlines() if "3090" in line)
    usable, budget, *parts = map(float, re.findall(r"-?\d+\.\d+", row))
    assert sum(parts) == pytest.approx(budget, abs=0.04)
    assert budget < usable
    assert "does not fit" in shown
    assert f"would fit: {fit.nearest[0]}" in shown


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        ([str(GLM), "--card", "24576", "--tp", "4", "--max-model-len", "131072"], 1),
        ([str(GLM), "--card", "24576", "--tp", "4", "--max-model-len", "8192"], 0),
        ([str(GLM), "--card", "24576", "--tp", "3"], 2),
        ([str(GLM), "--card", "24576", "--utilisation", "1.5"], 2),
        ([str(DATA / "qwen3-next-80b-a3b"), "--card", "97887", "--weights-gib", "45"], 0),
        (["/nowhere", "--card", "24576"], 2),
    ],
)
def test_the_command_says_whether_it_fits(
    arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == status
    captured = capsys.readouterr()
    assert captured.out if status < 2 else captured.err
