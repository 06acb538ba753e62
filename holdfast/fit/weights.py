"""How many bytes of weights one card holds, from the headers of the safetensors files.

A safetensors file begins with the length of its header (eight bytes, little-endian) and the header
itself, which is JSON, so the standard library can read it. `hf-mem`, the maintained tool for this,
needs the network and does not divide weights among cards.
"""

from __future__ import annotations

import json
import re
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from holdfast.fit.architecture import (
    Fields,
    NotUnderstood,
    quantisation_config,
    text_config,
)

_LARGEST_HEADER_BYTES = 100_000_000
"""The format's own limit (safetensors 0.6, `MAX_HEADER_SIZE`)."""

# Tensors that each card holds whole: in vLLM they are `ReplicatedLinear` or plain parameters.
_REPLICATED = re.compile(
    r"norm|(gate|router|classifier)\.(weight|bias|e_score)|q_a_proj|kv_a_proj|\.indexer\."
    r"|e_score_correction|(^|\.)(A_log|D|dt_bias)$|scale$"
)
_KEY_VALUE = re.compile(r"\.(k_proj|v_proj)\.")
_DRAFT = re.compile(r"(^|\.)(mtp|nextn|eagle)\b|(^|\.)mtp\.")
_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")
_ENCODER = re.compile(r"(^|\.)(visual|vision_\w+|audio_\w+|multi_modal_projector|embed_vision)\.")


@dataclass(frozen=True)
class Tensor:
    """One tensor of the checkpoint."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint."""

    tensors: tuple[Tensor, ...] = ()
    """The tensors in the headers; empty if there was only an index."""
    total_bytes: int = 0
    """Size of all weights, including drafting heads and encoders."""
    are_loaded: bool = False
    """Whether the size is that in a running engine, with padding; else it is the size on disk."""

    @property
    def by_dtype(self) -> dict[str, int]:
        """Bytes of each number format in the files, the largest first."""
        sizes: Counter[str] = Counter()
        for tensor in self.tensors:
            sizes[tensor.dtype] += tensor.size_bytes
        return dict(sizes.most_common())

    def on_one_card(self, config: Mapping[str, Any], cards: int, with_draft: bool = False) -> int:
        """Bytes on each of ``cards`` cards.

        With headers: each card holds all of the norms, routers and low-rank halves of latent
        attention; key and value projections are repeated as often as heads are; all other tensors
        are divided. Drafting heads count only if they are used. With an index only: an even share
        of everything, which is a little too much if the files contain a drafting head. Padding that
        loading adds is included.
        """
        padding = 0 if self.are_loaded else padding_bytes(config, cards)
        if not self.tensors:
            return -(-self.total_bytes // cards) + padding
        text = text_config(config)
        layers = Fields(text).depth
        kv_shards = min(cards, int(text.get("num_key_value_heads") or cards))
        is_tied = bool(text.get("tie_word_embeddings"))
        total = 0
        for tensor in self.tensors:
            layer = _LAYER.search(tensor.name)
            is_encoder = bool(_ENCODER.search(tensor.name))
            is_draft = bool(_DRAFT.search(tensor.name)) or (
                not is_encoder and layer is not None and int(layer[1]) >= layers
            )
            if (is_draft and not with_draft) or (is_tied and tensor.name.startswith("lm_head.")):
                continue
            shards = cards
            if len(tensor.shape) < 2 or _REPLICATED.search(tensor.name):
                shards = 1
            elif _KEY_VALUE.search(tensor.name) and not is_encoder:
                shards = kv_shards
            total += -(-tensor.size_bytes // shards)
        return total + padding


def padding_bytes(config: Mapping[str, Any], cards: int) -> int:
    """Bytes by which the experts of an MXFP4 checkpoint grow on one card when they are loaded.

    Marlin's kernels pad the feed-forward layer to a multiple of 128 and the hidden vector to one of
    256 (vLLM 0.32, `fused_moe/oracle/mxfp4.py`,
    `mxfp4_round_up_hidden_size_and_intermediate_size`); other kernels pad as much or less. gpt-oss
    120B grows from 60.77 GiB to 65.97 (vllm#23278).
    """
    if quantisation_config(config).get("quant_method") != "mxfp4":
        return 0
    f = Fields(text_config(config))
    hidden = f.need("hidden_size")
    inner = -(-f.largest("moe_intermediate_size", "intermediate_size", default=0) // cards)
    experts = f.largest("num_local_experts", "num_experts", default=0)
    padded = -(-hidden // 256) * 256 * (-(-inner // 128) * 128)
    # Gate, up and down have half a byte per number, and a scale of one byte for 32 numbers.
    return f.depth * experts * 3 * (padded - hidden * inner) * 17 // 32


def header(path: Path) -> list[Tensor]:
    """The tensors of one safetensors file.

    Raises:
        NotUnderstood: the file is not safetensors, or is truncated.
    """
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= _LARGEST_HEADER_BYTES:
            raise NotUnderstood(f"{path} is not a safetensors file: copy it again")
        text = file.read(length)
    try:
        entries = json.loads(text)
        return [
            Tensor(
                name,
                entry["dtype"],
                tuple(entry["shape"]),
                entry["data_offsets"][1] - entry["data_offsets"][0],
            )
            for name, entry in entries.items()
            if name != "__metadata__"
        ]
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise NotUnderstood(f"{path} is truncated or damaged: copy it again") from error


def described(path: Path) -> dict[str, Any]:
    """The description of a model in the JSON file ``path``.

    Raises:
        FileNotFoundError: there is no such file.
        NotUnderstood: the file is damaged.
    """
    try:
        description = json.loads(path.read_text())
    except ValueError as error:
        raise NotUnderstood(f"{path} is not JSON ({error}): copy it again") from error
    if not isinstance(description, dict):
        raise NotUnderstood(f"{path} is not the description of a model: copy it again")
    return description


def read(folder: Path) -> Weights:
    """The weights in ``folder``, from headers or else from model.safetensors.index.json.

    Raises:
        NotUnderstood: there is neither, one is damaged, or a file named in the index is missing.
    """
    index = folder / "model.safetensors.index.json"
    listing = described(index) if index.is_file() else {}
    parts = listing.get("weight_map", {})
    if not isinstance(parts, dict) or not all(isinstance(each, str) for each in parts.values()):
        raise NotUnderstood(f"{index} is not the index of a model: copy it again")
    names = sorted(set(parts.values()))
    files = [folder / name for name in names] or sorted(folder.glob("*.safetensors"))
    present = [file for file in files if file.is_file()]
    if present and len(present) < len(files):
        missing = next(file for file in files if file not in present)
        raise NotUnderstood(f"{missing} is named in the index and missing: copy it again")
    if present:
        tensors = tuple(tensor for file in present for tensor in header(file))
        return Weights(tensors, sum(tensor.size_bytes for tensor in tensors))
    metadata = listing.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if not isinstance(total, int | float) or isinstance(total, bool) or total <= 0:
        raise NotUnderstood(
            f"{folder} has no safetensors files and no index with their total_size in bytes: copy"
            " one of them there, or give the size of the weights"
        )
    return Weights(total_bytes=int(total))


def quantisation(config: Mapping[str, Any]) -> str:
    """The checkpoint's number format, for tables: bfloat16, fp8, awq int4, nvfp4."""
    text = text_config(config)
    found = quantisation_config(config)
    if not found:
        return str(text.get("dtype") or text.get("torch_dtype") or "bfloat16")
    method = str(found.get("quant_method", "")).replace("_", "-")
    inner = found.get("quantization") or found
    if algorithm := inner.get("quant_algo"):
        return f"{method or 'modelopt'} {algorithm}".lower()
    if layout := found.get("format"):
        return f"{method} {layout}"
    bits = found.get("bits") or found.get("w_bit")
    return f"{method} int{bits}" if bits else method
