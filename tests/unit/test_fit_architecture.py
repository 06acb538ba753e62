"""What each layer keeps, from config.json."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from holdfast.fit.architecture import (
    Attends,
    CacheFormat,
    Fields,
    NotUnderstood,
    Remembers,
    layers,
    text_config,
)

DATA = Path("tests/unit/data/fit")
FOLDERS = sorted(path.parent for path in DATA.glob("*/config.json"))


def config(name: str) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((DATA / name / "config.json").read_text())
    return read


DENSE = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("name", "attending", "bytes_per_token", "recurring", "state_bytes"),
    [
        ("llama-3.1-8b", 32, 2 * 8 * 128 * 2, 0, 0),
        ("qwen3-235b-a22b-fp8", 94, 2 * 4 * 128 * 2, 0, 0),
        ("deepseek-v3", 61, (512 + 64) * 2, 0, 0),
        # Six of 52 layers attend; conv (4096 + 2 x 8 x 128) x 3 x 2 B and 64 x 64 x 128 x 4 B.
        ("nemotron-3-nano-30b-a3b-fp8", 6, 512, 23, 36_864 + 2_097_152),
        ("qwen3.6-35b-a3b-nvfp4", 10, 1024, 30, 49_152 + 2_097_152),
        ("qwen3-next-80b-a3b", 12, 2048, 36, 49_152 + 1_048_576),
        ("kimi-linear-48b-a3b", 7, 1152, 20, 3 * 4096 * 3 * 2 + 32 * 128 * 128 * 4),
        ("jamba-1.5-mini", 4, 4096, 28, 8192 * 3 * 2 + 8192 * 16 * 2),
        ("granite-4-h-small", 4, 4096, 36, (8192 + 256) * 3 * 2 + 128 * 64 * 128 * 2),
        ("falcon-h1-7b", 44, 1024, 44, (3072 + 512) * 3 * 2 + 24 * 128 * 256 * 2),
        ("lfm2-1.2b", 6, 2 * 8 * 64 * 2, 10, 2048 * 2 * 2),
        ("falcon-mamba-7b", 0, 0, 64, 8192 * 3 * 2 + 8192 * 16 * 2),
        ("llama-4-scout", 48, 4096, 0, 0),
    ],
)
def test_what_layers_keep(
    name: str, attending: int, bytes_per_token: int, recurring: int, state_bytes: int
) -> None:
    found = layers(config(name))
    attends = [layer for layer in found if isinstance(layer, Attends)]
    remembers = [layer for layer in found if isinstance(layer, Remembers)]
    assert [layer.bytes_per_token for layer in attends] == [bytes_per_token] * attending
    assert [layer.bytes_per_sequence for layer in remembers] == [state_bytes] * recurring


def windows(values: dict[str, Any]) -> list[int | None]:
    return [layer.window_tokens for layer in layers(values) if isinstance(layer, Attends)]


def test_windows_follow_the_models_pattern() -> None:
    assert windows(config("gpt-oss-120b")) == [128, None] * 18
    assert windows(config("gemma-3-27b")) == ([1024] * 5 + [None]) * 10 + [1024] * 2
    assert windows(config("mistral-7b-v0.1")) == [4096] * 32
    assert windows(config("qwen3-14b")) == [None] * 40
    exaone = {**DENSE, "num_hidden_layers": 4, "sliding_window": 99}
    assert windows({**exaone, "sliding_window_pattern": "LLLG"}) == [99, 99, 99, None]
    assert windows({**exaone, "use_sliding_window": True, "max_window_layers": 3})[2:] == [None, 99]


def test_gemma_4_has_wider_and_fewer_heads_where_it_sees_everything() -> None:
    found = set(layers(config("gemma-4-31b-int4")))
    assert found == {Attends(16 * 2 * 256 * 2, 1024), Attends(4 * 2 * 512 * 2)}


def test_layers_that_share_a_cache_count_once() -> None:
    kinds = ["sliding_attention", "full_attention"] * 2
    shared = {**DENSE, "num_hidden_layers": 4, "layer_types": kinds, "sliding_window": 8}
    assert len(layers({**shared, "num_kv_shared_layers": 1})) == 3


def test_sparse_attention_keeps_its_indexers_keys() -> None:
    latent, indexer = Attends(1152, is_latent=True), Attends(128 + 4, is_latent=True)
    assert layers(config("deepseek-v3.2")) == [latent] * 61 + [indexer] * 61
    fp8 = layers(config("deepseek-v3.2"), CacheFormat(kv_dtype="fp8"))
    assert fp8[0] == Attends(656, is_latent=True)


def test_minimax_m3_keeps_the_keys_that_choose_blocks() -> None:
    sparse = {"sparse_attention_freq": [0, 1], "sparse_index_dim": 128, "sparse_num_index_heads": 4}
    found = layers({**DENSE, "sparse_attention_config": sparse}, CacheFormat(kv_dtype="fp8"))
    assert found == [Attends(4 * 2 * 128)] * 2 + [Attends(256, is_latent=True)]
    with pytest.raises(NotUnderstood, match="sets sparse_attention_config"):
        layers({**DENSE, "sparse_attention_config": {"sparse_topk_blocks": 16}})


def test_nas_models_skip_attention_in_some_layers() -> None:
    blocks = [
        {"attention": {"n_heads_in_group": 2, "no_op": False}},
        {"attention": {"n_heads_in_group": None, "no_op": True}},
    ]
    found = layers({**DENSE, "model_type": "nemotron-nas", "block_configs": blocks})
    assert found == [Attends(4 * 2 * 128 * 2)]


@pytest.mark.parametrize(
    ("kv_dtype", "expected"),
    [
        ("auto", 4 * 2 * 256),
        ("fp8", 4 * 2 * 128),
        ("fp8_e5m2", 4 * 2 * 128),
        ("nvfp4", 4 * 2 * (64 + 8)),
        ("int8_per_token_head", 4 * 2 * 132),
        ("int4_per_token_head", 4 * 2 * 68),
    ],
)
def test_cache_formats(kv_dtype: str, expected: int) -> None:
    assert layers(DENSE, CacheFormat(kv_dtype=kv_dtype)) == [Attends(expected)] * 2


FLOAT8 = {"type": "float", "num_bits": 8, "dynamic": False, "strategy": "tensor"}


@pytest.mark.parametrize(
    ("found", "is_fp8"),
    [
        ({"quant_method": "modelopt", "kv_cache_quant_algo": "FP8"}, True),
        ({"quant_method": "modelopt_fp4", "quantization": {"kv_cache_scheme": FLOAT8}}, True),
        ({"quant_method": "modelopt", "kv_cache_scheme": {**FLOAT8, "dynamic": True}}, False),
        # hf_quant_config.json of ModelOpt up to 0.29.
        ({"producer": {"name": "modelopt"}, "quantization": {"kv_cache_quant_algo": "FP8"}}, True),
        ({"producer": {"name": "modelopt"}, "quantization": {"kv_cache_quant_algo": None}}, False),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": FLOAT8}, True),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": None}, False),
        ({"quant_method": "fp8", "kv_cache_scheme": FLOAT8}, False),
    ],
)
def test_auto_follows_the_checkpoints_calibration(found: dict[str, Any], is_fp8: bool) -> None:
    expected = Attends(4 * 2 * (128 if is_fp8 else 256))
    assert layers({**DENSE, "quantization_config": found})[0] == expected
    assert layers({"text_config": {**DENSE, "quantization_config": found}})[0] == expected


def test_compressed_tensors_may_stand_under_its_older_name() -> None:
    found = {"quant_method": "compressed-tensors", "kv_cache_scheme": FLOAT8}
    assert layers({**DENSE, "compression_config": found})[0] == Attends(4 * 2 * 128)


def test_a_cache_that_vllm_refuses_is_refused() -> None:
    scheme = {**FLOAT8, "type": "int"}
    found = {"quant_method": "compressed-tensors", "kv_cache_scheme": scheme}
    with pytest.raises(NotUnderstood, match="8-bit int, which vLLM refuses"):
        layers({**DENSE, "quantization_config": found})


@pytest.mark.parametrize(("cards", "heads"), [(1, 4), (2, 2), (4, 1), (8, 1), (16, 1)])
def test_heads_are_divided_and_then_repeated(cards: int, heads: int) -> None:
    found = layers(DENSE, CacheFormat(tensor_parallel=cards))
    assert found == [Attends(heads * 2 * 128 * 2)] * 2


def test_a_latent_is_whole_on_each_card_and_a_state_is_divided() -> None:
    assert layers(config("deepseek-v3"), CacheFormat(8)) == layers(config("deepseek-v3"))
    found = layers(config("nemotron-3-nano-30b-a3b-fp8"), CacheFormat(4))
    # 8 groups divide by 4; with 16 cards each card still needs a group of its own.
    assert Remembers((36_864 + 2_097_152) // 4, is_mamba2=True) in found
    sixteen = layers(config("nemotron-3-nano-30b-a3b-fp8"), CacheFormat(16))
    width = (4096 + 2 * 16 * 128) // 16
    assert Remembers(width * 3 * 2 + 2_097_152 // 16, is_mamba2=True) in sixteen


def test_nemotron_keeps_its_state_in_32_bits_unless_told() -> None:
    nano = config("nemotron-3-nano-30b-a3b-fp8")
    state = Remembers(36_864 + 2_097_152, is_mamba2=True)
    assert state in layers({**nano, "mamba_ssm_cache_dtype": None})
    half = Remembers(36_864 + 1_048_576, is_mamba2=True)
    assert half in layers({**nano, "mamba_ssm_cache_dtype": "bfloat16"})
    assert half in layers(nano, CacheFormat(state_dtype="bfloat16"))


@pytest.mark.parametrize(
    ("change", "heads"),
    [
        ({"attn_config": {"kv_n_heads": 2}}, 2),
        ({"multi_query": True, "num_kv_heads": 8}, 1),
        ({"multi_query": True, "new_decoder_architecture": True, "num_kv_heads": 2}, 2),
        ({"multi_query_group_num": 2}, 2),
        ({}, 8),
    ],
)
def test_older_names_of_key_value_heads(change: dict[str, Any], heads: int) -> None:
    found = layers({**DENSE, "num_key_value_heads": None, **change})
    assert found == [Attends(heads * 2 * 128 * 2)] * 2


def test_drafting_adds_a_layer_and_widens_the_convolution() -> None:
    plain = layers(config("qwen3.8-27b"))
    drafting = layers(config("qwen3.8-27b"), CacheFormat(draft_tokens=3))
    assert len(drafting) == len(plain) + 1
    assert Remembers(10_240 * 6 * 2 + 48 * 128 * 128 * 4) in drafting
    # Qwen3-Next does not count its one drafting layer.
    plain = layers(config("qwen3-next-80b-a3b"))
    assert len(layers(config("qwen3-next-80b-a3b"), CacheFormat(draft_tokens=2))) == len(plain) + 1


@pytest.mark.parametrize(
    ("name", "change"),
    [
        # GLM-5: the keys it has beside DeepSeek V3.2's.
        (
            "deepseek-v3.2",
            {
                "model_type": "glm_moe_dsa",
                "indexer_rope_interleave": True,
                "rope_interleave": True,
                "mlp_layer_types": ["dense"] * 3 + ["sparse"] * 58,
                "index_share_for_mtp_iteration": True,
            },
        ),
        ("llama-4-scout", {"for_llm_compressor": True}),
        ("llama-3.1-8b", {"do_convert_rgb": True}),
        ("deepseek-v3", {"mla_scale_kv_lora": True, "mla_scale_q_lora": True}),
        ("qwen3-14b", {"dual_chunk_attention_config": {"chunk_size": 262144}}),
    ],
)
def test_keys_that_change_no_memory_are_passed_over(name: str, change: dict[str, Any]) -> None:
    plain = config(name)
    inner = {**text_config(plain), **change}
    assert layers({"text_config": inner}) == layers(plain)


def test_a_depth_may_be_told_by_the_layers_alone() -> None:
    nano = config("nemotron-3-nano-30b-a3b-fp8")
    words = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
    pattern = nano.pop("hybrid_override_pattern")
    named = {**nano, "layers_block_type": [words[letter] for letter in pattern]}
    del named["num_hidden_layers"]
    assert layers(named) == layers(config("nemotron-3-nano-30b-a3b-fp8"))
    assert Fields(named).depth == 52


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"compress_ratios": [4, 128]}, "sets compress_ratios"),
        ({"indexer_n_heads": 4, "ple_layer_ids": [1]}, "sets indexer_n_heads, ple_layer_ids"),
        ({"layer_types": ["full_attention", "retention"]}, "retention"),
        ({"layer_types": ["full_attention"]}, "1 layer types for 2 layers"),
        ({"layer_types": ["linear_attention"] * 2}, "linear attention of model type 'llama'"),
        ({"kv_lora_rank": 256}, "kv_lora_rank"),
        ({"index_topk": 2048}, "sets index_topk"),
        ({"mamba_step": 2}, "sets mamba_step"),
        ({"hybrid_override_pattern": "M*X"}, "other than M"),
        ({"num_attention_heads": None, "num_key_value_heads": None}, "num_attention_heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
        ({"is_encoder_decoder": True}, "encoder-decoder"),
        ({"num_hidden_layers": None}, "'llama' has no usable 'num_hidden_layers'.*serve another"),
    ],
)
def test_what_is_not_understood_is_refused_in_a_sentence(
    change: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(NotUnderstood, match=sentence):
        layers({**DENSE, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["LlamaForCausalLMEagle3"], "draft_vocab_size": 32000},
        {"architectures": ["DFlashDraftModel"], "model_type": "qwen3"},
        {"architectures": ["Qwen3DSparkModel"], "model_type": "qwen3"},
        {"architectures": ["Qwen3_5MTP"], "model_type": "qwen3_5_mtp"},
        {"architectures": ["NemotronHMTPModel"], "model_type": "nemotron_h_mtp"},
        {"architectures": ["Eagle3Speculator"], "speculators_model_type": "eagle3"},
    ],
)
def test_a_drafting_head_alone_is_no_model_to_serve(change: dict[str, Any]) -> None:
    with pytest.raises(NotUnderstood, match=r"drafting head .*name that model"):
        layers({**DENSE, **change})


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # Cohere's window holds the token itself too.
        (
            {
                "model_type": "cohere2_moe",
                "sliding_window": 99,
                "layer_types": ["sliding_attention"],
            },
            Attends(4 * 2 * 256, 100),
        ),
        # Gemma 4 has wide heads where its file leaves their size to code.
        ({"model_type": "gemma4_text"}, Attends(4 * 2 * 512 * 2)),
        # MiniCPM3 compresses its weights and caches whole heads.
        (
            {
                "model_type": None,
                "architectures": ["MiniCPM3ForCausalLM"],
                "kv_lora_rank": 256,
                "qk_nope_head_dim": 64,
                "qk_rope_head_dim": 32,
                "v_head_dim": 64,
            },
            Attends(8 * 2 * 96 * 2),
        ),
        # DeepSeek-VL2 tiny writes 0 for what it has not.
        ({"v_head_dim": 0, "kv_lora_rank": None, "qk_nope_head_dim": 0}, Attends(4 * 2 * 256)),
    ],
)
def test_heads_as_vllm_keeps_them(change: dict[str, Any], expected: Attends) -> None:
    # As many layers as are named.
    depth = len(change.get("layer_types", [1]))
    one = {**DENSE, "num_hidden_layers": depth, "prefix_dense_sliding_window_pattern": 1}
    assert layers({**one, **change}) == [expected]


MAMBA = {"ssm_state_size": 16, "conv_kernel": 4, "mamba_num_heads": 8, "mamba_head_dim": 64}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        # Transformers 5 has one word for every layer that recurs.
        (
            {**MAMBA, "layer_types": ["mamba", "attention"]},
            {**MAMBA, "layer_types": ["linear_attention", "full_attention"]},
        ),
        (
            {**MAMBA, "layers_block_type": ["mamba", "hybrid"]},
            {**MAMBA, "layers_block_type": ["linear_attention", "hybrid"]},
        ),
        (
            {
                "linear_attn_config": {
                    "num_heads": 4,
                    "head_dim": 128,
                    "short_conv_kernel_size": 4,
                    "full_attn_layers": [2],
                }
            },
            {
                "linear_num_heads": 4,
                "linear_head_dim": 128,
                "linear_conv_kernel_dim": 4,
                "layer_types": ["linear_attention", "full_attention"],
            },
        ),
    ],
)
def test_both_dialects_of_a_hybrid_are_read(ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    assert layers({**DENSE, **theirs}) == layers({**DENSE, **ours})
    assert any(isinstance(layer, Remembers) for layer in layers({**DENSE, **theirs}))


@pytest.mark.parametrize(
    "name", ["qwen3.8-27b", "qwen3-next-80b-a3b", "granite-4-h-small", "jamba-1.5-mini"]
)
def test_a_hybrid_that_does_not_name_its_layers_is_never_planned_as_dense(name: str) -> None:
    said = ("layer_types", "full_attention_interval", "layers_block_type")
    named = (*said, "attn_layer_period", "attn_layer_offset")
    inner = {k: v for k, v in text_config(config(name)).items() if k not in named}
    kept = [k for k in inner if not k.startswith(("linear_", "mamba_"))]
    for silent in (inner, {k: inner[k] for k in kept}):
        try:
            found = layers({"text_config": silent})
        except NotUnderstood:
            continue
        assert any(isinstance(layer, Remembers) for layer in found)


@pytest.mark.parametrize(
    ("split", "sentence"),
    [
        (CacheFormat(3), "4 key-value heads cannot be shared by 3 cards"),
        (CacheFormat(kv_dtype="turboquant_4bit_nc"), "turboquant_4bit_nc"),
        (CacheFormat(draft_tokens=1), "mtp_num_hidden_layers"),
    ],
)
def test_splits_that_cannot_be_are_refused(split: CacheFormat, sentence: str) -> None:
    with pytest.raises(NotUnderstood, match=sentence):
        layers(DENSE, split)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_recorded_model_is_understood(folder: Path) -> None:
    assert layers(json.loads((folder / "config.json").read_text()))
