"""The lab's model: stable bytes, and a file that GGUF's own reader accepts."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from tests.lab.artefacts import store, tiny_gguf

# Printed by `sha256sum`. It moves only when tiny_gguf.py is changed on purpose.
SHA256 = "cfbdb6df1eeeb9d01a0fab35b2472ae1a97ac584949c903b67012da9a2d8738a"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tiny_gguf.write(path)
    return path


def test_bytes_are_the_same_on_every_machine(model: Path) -> None:
    assert store.sha256(model) == SHA256


def test_it_describes_a_complete_llama(model: Path) -> None:
    reader = gguf.GGUFReader(model)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.embedding_length"] / fields["llama.attention.head_count"] >= 32
    tokens = fields["tokenizer.ggml.tokens"]
    assert len(tokens) == fields["llama.vocab_size"] == len(set(tokens))
    assert {f"<0x{byte:02X}>" for byte in range(256)} <= set(tokens)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert len(tensors) == 3 + 9 * fields["llama.block_count"]
    assert list(tensors["output.weight"].shape) == [tiny_gguf.EMBEDDING, len(tokens)]


def test_only_whole_words_can_be_said(model: Path) -> None:
    reader = gguf.GGUFReader(model)
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    tensors = {tensor.name: tensor.data for tensor in reader.tensors}
    said = [
        token for token, row in zip(tokens, tensors["output.weight"], strict=True) if row[0] == 0
    ]
    assert set(said) == {f"\u2581{word}" for word in tiny_gguf.WORDS.split()}
    for layer in range(tiny_gguf.LAYERS):
        for part in ("attn_output", "ffn_down"):
            assert not tensors[f"blk.{layer}.{part}.weight"][0].any()
