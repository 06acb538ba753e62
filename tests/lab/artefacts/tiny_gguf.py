"""A real, tiny language model made from nothing: random weights, correct file, stable bytes.

The drill must see a completion travel from the floor to the controller. What the model says does
not matter; that it loads, tokenises and answers through the real engine does. Downloading one is
neither possible everywhere nor reproducible, so this module writes a llama-architecture GGUF of
about one megabyte. The same version of this file always gives the same sha256, which is what the
drill's inventory pins.
"""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

from tests.lab.artefacts import store

EMBEDDING = 128
HEADS = 4  # 32 dimensions a head: some engines refuse fewer on a CPU
FEED_FORWARD = 256
LAYERS = 2
CONTEXT_TOKENS = 2048
SEED = 20261121

WORDS = """
    the rack keeps a quiet light while the floor answers and the network sleeps
    local steady warm copper lamp door key house garden river stone bread early
    late north window letter orchard harbour kettle engine ladder
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def _vocabulary() -> tuple[list[bytes], list[float], list[int]]:
    """Tokens, scores and types of a SentencePiece vocabulary that can encode any text."""
    kinds = gguf.TokenType
    tokens: list[tuple[bytes, float, int]] = [
        (b"<unk>", 0.0, kinds.UNKNOWN),
        (b"<s>", 0.0, kinds.CONTROL),
        (b"</s>", 0.0, kinds.CONTROL),
    ]
    tokens += [(f"<0x{byte:02X}>".encode(), 0.0, kinds.BYTE) for byte in range(256)]
    characters = ["\u2581", *(chr(code) for code in range(0x21, 0x7F))]
    tokens += [(character.encode(), -100.0, kinds.NORMAL) for character in characters]
    words = dict.fromkeys(WORDS.split())
    tokens += [
        (f"\u2581{word}".encode(), -1.0 - rank, kinds.NORMAL) for rank, word in enumerate(words)
    ]
    return ([t[0] for t in tokens], [t[1] for t in tokens], [int(t[2]) for t in tokens])


class Weights:
    """Small uniform numbers from raw generator bits.

    Raw bits of PCG64 are the one stream that numpy promises never to change; its distributions
    are not, and the file's sha256 must not move with a numpy release.
    """

    def __init__(self, seed: int) -> None:
        self._bits = np.random.PCG64(seed)

    def matrix(self, rows: int, columns: int) -> NDArray[np.float32]:
        raw = self._bits.random_raw(rows * columns)
        unit = (raw >> np.uint64(40)).astype(np.float32) / np.float32(2**23) - np.float32(1)
        scale = np.float32(1 / 16)
        return (unit * scale).reshape(rows, columns)


def build() -> store.Entry:
    """The model as `tiny.gguf`."""

    def fill(target: Path) -> str:
        write(target / "tiny.gguf")
        return str(SEED)

    return store.stored("gguf", {"recipe": Path(__file__).read_text()}, fill)


def write(path: Path) -> None:
    """Write the model to `path`. Deterministic; takes well under a second."""
    tokens, scores, kinds = _vocabulary()
    first_word = len(tokens) - len(set(WORDS.split()))
    weights = Weights(SEED)

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("holdfast tiny")
    writer.add_context_length(CONTEXT_TOKENS)
    writer.add_embedding_length(EMBEDDING)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_rope_dimension_count(EMBEDDING // HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(kinds)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)

    embeddings = weights.matrix(len(tokens), EMBEDDING).astype(np.float16)
    output = weights.matrix(len(tokens), EMBEDDING).astype(np.float16) * np.float16(2)
    # One constant dimension lets the output layer rule out everything but whole words: the answer
    # is readable, never invalid UTF-8, and never ends before the number of tokens asked for.
    embeddings[:, 0] = 0.25
    output[:, 0] = 0
    output[:first_word, 0] = -32

    ones = np.ones(EMBEDDING, dtype=np.float32)
    shapes = {
        "attn_q": (EMBEDDING, EMBEDDING),
        "attn_k": (EMBEDDING, EMBEDDING),
        "attn_v": (EMBEDDING, EMBEDDING),
        "attn_output": (EMBEDDING, EMBEDDING),
        "ffn_gate": (FEED_FORWARD, EMBEDDING),
        "ffn_up": (FEED_FORWARD, EMBEDDING),
        "ffn_down": (EMBEDDING, FEED_FORWARD),
    }
    writer.add_tensor("token_embd.weight", embeddings)
    writer.add_tensor("output_norm.weight", ones)
    writer.add_tensor("output.weight", output)
    for layer in range(LAYERS):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", ones)
        for part, (rows, columns) in shapes.items():
            matrix = weights.matrix(rows, columns).astype(np.float16)
            if part in ("attn_output", "ffn_down"):
                matrix[0] = 0  # nothing may be added to the constant dimension
            writer.add_tensor(f"blk.{layer}.{part}.weight", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
