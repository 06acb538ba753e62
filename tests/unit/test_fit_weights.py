"""Weights from safetensors files and their index."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from holdfast.fit.architecture import NotUnderstood
from holdfast.fit.weights import Weights, quantisation, read

DATA = Path("tests/unit/data/fit")
CONFIG = {"num_hidden_layers": 1, "num_key_value_heads": 2, "tie_word_embeddings": False}
SIZES = {"BF16": 2, "F8_E4M3": 1, "U8": 1, "I32": 4}
TENSORS = {
    "model.embed_tokens.weight": ("BF16", (100, 8)),
    "model.layers.0.self_attn.q_proj.weight": ("F8_E4M3", (16, 8)),
    "model.layers.0.self_attn.k_proj.weight": ("F8_E4M3", (8, 8)),
    "model.layers.0.input_layernorm.weight": ("BF16", (8,)),
    "model.layers.0.mlp.gate.weight": ("BF16", (4, 8)),
    "model.layers.1.mlp.up_proj.weight": ("U8", (40, 8)),
    "mtp.fc.weight": ("BF16", (8, 8)),
    "lm_head.weight": ("BF16", (100, 8)),
}


def write(path: Path, tensors: dict[str, tuple[str, tuple[int, ...]]]) -> None:
    header, end = {}, 0
    for name, (dtype, shape) in tensors.items():
        start, end = end, end + SIZES[dtype] * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)


def test_headers_tell_what_each_card_holds(tmp_path: Path) -> None:
    write(tmp_path / "model.safetensors", TENSORS)
    weights = read(tmp_path)
    assert weights.total_bytes == 1600 + 128 + 64 + 16 + 64 + 320 + 128 + 1600
    assert weights.by_dtype == {"BF16": 3408, "U8": 320, "F8_E4M3": 192}
    # Layer 1 and mtp draft; they are loaded only to draft.
    assert weights.on_one_card(CONFIG, 1) == 1600 + 128 + 64 + 16 + 64 + 1600
    assert weights.on_one_card(CONFIG, 1, with_draft=True) == weights.total_bytes
    # On four cards each of two key heads is on two; norm and router are on all.
    assert weights.on_one_card(CONFIG, 4) == 400 + 32 + 32 + 16 + 64 + 400
    tied = {**CONFIG, "tie_word_embeddings": True}
    assert weights.on_one_card(tied, 1) == 1600 + 128 + 64 + 16 + 64


def test_an_index_alone_is_shared_evenly(tmp_path: Path) -> None:
    index = {"metadata": {"total_size": 1001}, "weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read(tmp_path).on_one_card(CONFIG, 4) == 251


@pytest.mark.parametrize(
    ("name", "files_gib", "loaded_gib"),
    [
        # As Marlin loaded them: vllm#23278, and the gpt-oss 20B of logs.json.
        ("gpt-oss-120b", 60.77, 65.97),
        ("gpt-oss-20b", 12.82, 13.72),
    ],
)
def test_mxfp4_experts_grow_when_loaded(name: str, files_gib: float, loaded_gib: float) -> None:
    config = json.loads((DATA / name / "config.json").read_text())
    weights = Weights(total_bytes=int(files_gib * 2**30))
    assert weights.on_one_card(config, 1) / 2**30 == pytest.approx(loaded_gib, rel=0.005)
    assert Weights(total_bytes=1, are_loaded=True).on_one_card(config, 1) == 1
    # Other formats are loaded as they are.
    del config["quantization_config"]
    assert weights.on_one_card(config, 1) == weights.total_bytes
    # Two cards hold 1,440 of the feed-forward layer each, padded to 1,536.
    config["quantization_config"] = {"quant_method": "mxfp4"}
    assert weights.on_one_card(config, 2) * 2 > weights.on_one_card(config, 1)


@pytest.mark.parametrize("content", [b"", b"\xff" * 8, b"\x09" + b"\x00" * 7 + b'{"a": {}}'])
def test_damaged_files_are_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(NotUnderstood, match="copy it again"):
        read(tmp_path)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(NotUnderstood, match="no safetensors"):
        read(tmp_path)
    names = {"a": "model-1.safetensors", "b": "model-2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    write(tmp_path / "model-1.safetensors", {"a": ("BF16", (2, 2))})
    with pytest.raises(NotUnderstood, match=r"model-2\.safetensors is named in the index"):
        read(tmp_path)


@pytest.mark.parametrize("total", ["29 GB", 0, -1, None, True, [29]])
def test_a_size_that_is_no_number_of_bytes_is_refused(tmp_path: Path, total: object) -> None:
    index = {"metadata": {"total_size": total}, "weight_map": {"a": "model-1.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(NotUnderstood, match="total_size in bytes"):
        read(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]"])
def test_a_damaged_index_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(NotUnderstood, match=r"index\.json is not .*: copy it again"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({}, "bfloat16"),
        ({"quantization_config": {"quant_method": "fp8"}}, "fp8"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "awq int4"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 8}}, "gptq int8"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}},
            "modelopt nvfp4",
        ),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "format": "nvfp4-pack"}},
            "compressed-tensors nvfp4-pack",
        ),
    ],
)
def test_names_of_quantisations(found: dict[str, object], words: str) -> None:
    assert quantisation(found) == words
