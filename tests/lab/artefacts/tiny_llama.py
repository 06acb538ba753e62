"""A checkpoint as vLLM takes it, made from nothing: a Llama of one megabyte with random weights.

What `tiny_gguf` is to the floor, this is to a rack's engine. It can say nothing but the words it
knows and never ends by itself, so an answer has as many tokens as were asked for. Another seed is
another model of the same size, for those who replace one by the other.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.lab.artefacts import store
from tests.lab.artefacts.tiny_gguf import CHAT_TEMPLATE, WORDS, Weights

HIDDEN = 128
HEADS = 4  # 32 dimensions a head: vLLM refuses fewer on a CPU
KV_HEADS = 2
INTERMEDIATE = 256
LAYERS = 2
CONTEXT_TOKENS = 2048
SEED = 20261121
OTHER_SEED = 20261122

FOLDER = "tiny-llama"
SUMS = "SHA256SUMS"
SPECIAL = ("<unk>", "<s>", "</s>")
TOKENS = (*SPECIAL, *dict.fromkeys(WORDS.split()))


def build(seed: int = SEED) -> store.Entry:
    """The folder `tiny-llama` with everything that belongs to a checkpoint, and `SHA256SUMS`."""

    def fill(target: Path) -> str:
        write(target / FOLDER, seed)
        return str(seed)

    texts = (
        Path(__file__).with_name(name).read_text() for name in ("tiny_llama.py", "tiny_gguf.py")
    )
    return store.stored("tiny-llama", {"recipe": "".join(texts), "seed": str(seed)}, fill)


def write(folder: Path, seed: int = SEED) -> None:
    """Write the checkpoint into a new folder. Deterministic; takes well under a second."""
    folder.mkdir()
    ends = {"bos_token_id": TOKENS.index("<s>"), "eos_token_id": TOKENS.index("</s>")}
    _write_json(folder / "config.json", _config() | ends)
    _write_json(folder / "generation_config.json", ends)
    _write_json(folder / "tokenizer.json", _tokenizer())
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "model_max_length": CONTEXT_TOKENS,
            **dict(zip(("unk_token", "bos_token", "eos_token"), SPECIAL, strict=True)),
            "chat_template": CHAT_TEMPLATE,
        },
    )
    _write_tensors(folder / "model.safetensors", _tensors(seed))
    names = sorted(path.name for path in folder.iterdir())
    sums = "".join(f"{store.sha256(folder / name)}  {name}\n" for name in names)
    (folder / SUMS).write_text(sums)


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        # Of bfloat16 vLLM's CPU build computes with AMX, and dies by SIGILL where the processor has
        # that and a hypervisor's kernel does not let it.
        "torch_dtype": "float16",
        "hidden_act": "silu",
        "hidden_size": HIDDEN,
        "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HIDDEN // HEADS,
        "max_position_embeddings": CONTEXT_TOKENS,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "attention_bias": False,
        "vocab_size": len(TOKENS),
    }


def _tokenizer() -> dict[str, object]:
    """A tokenizer of whole words: what it does not know is one `<unk>`."""
    return {
        "version": "1.0",
        "added_tokens": [
            {
                "id": number,
                "content": token,
                "special": True,
                **dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False),
            }
            for number, token in enumerate(SPECIAL)
        ],
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "model": {
            "type": "WordLevel",
            "vocab": {token: number for number, token in enumerate(TOKENS)},
            "unk_token": SPECIAL[0],
        },
    }


def _tensors(seed: int) -> dict[str, NDArray[np.float32]]:
    weights = Weights(seed)
    key_values = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (key_values, HIDDEN),
        "self_attn.v_proj": (key_values, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
        "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE),
    }
    embeddings = weights.matrix(len(TOKENS), HIDDEN)
    output = weights.matrix(len(TOKENS), HIDDEN) * np.float32(2)
    # One constant dimension lets the output layer rule out everything but words; see `tiny_gguf`.
    embeddings[:, 0] = 0.25
    output[:, 0] = 0
    output[: len(SPECIAL), 0] = -32
    tensors = {
        "model.embed_tokens.weight": embeddings,
        "model.norm.weight": np.ones(HIDDEN, dtype=np.float32),
        "lm_head.weight": output,
    }
    for layer in range(LAYERS):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = np.ones(HIDDEN, dtype=np.float32)
        for part, (rows, columns) in shapes.items():
            matrix = weights.matrix(rows, columns)
            if part in ("self_attn.o_proj", "mlp.down_proj"):
                matrix[0] = 0  # nothing may be added to the constant dimension
            tensors[f"{prefix}.{part}.weight"] = matrix
    return tensors


def _write_tensors(path: Path, tensors: dict[str, NDArray[np.float32]]) -> None:
    """Write a safetensors file: the length of its header, the header as JSON, the numbers."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        numbers = tensor.astype("<f2").tobytes()
        offsets = [len(data), len(data) + len(numbers)]
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": offsets}
        data += numbers
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
