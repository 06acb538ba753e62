"""What each layer of a model keeps per token or per sequence, on one card, read from config.json.

Two kinds of layer use the cache. An attention layer (`Attends`) keeps bytes for each token. A
recurrent layer (`Remembers`) keeps one state for each sequence, however long it is. This module
turns the fields of a Hugging Face config.json into a list of these layers. The formulas are vLLM
0.32's (`model_arch_config_convertor.py`, `mamba_utils.py`, the models' own files). A model with an
unknown field that could change the cache is refused, because a wrong number is worse than none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any


class NotUnderstood(ValueError):
    """This model or setting cannot be planned; the message is one sentence and says what to do."""


MEND = "serve another model, or add this one to holdfast/fit/architecture.py"
"""What to do when config.json is complete and has a value that is not planned here."""


@dataclass(frozen=True)
class Attends:
    """A layer that keeps keys and values (or one latent) for each token."""

    bytes_per_token: int
    """Bytes that one token takes in this layer, on one card."""
    window_tokens: int | None = None
    """Tokens that a sliding window looks back; None: the layer keeps every token."""
    is_latent: bool = False
    """Multi-head latent attention: every card keeps the same bytes, at any tensor parallel size."""


@dataclass(frozen=True)
class Remembers:
    """A recurrent layer (Mamba, gated delta net, linear attention, short convolution)."""

    bytes_per_sequence: int
    """Bytes of the state of one sequence in this layer, on one card."""
    is_mamba2: bool = False
    """vLLM 0.32 keeps one more state for Mamba 2 (`mamba_mixer2.py`, `get_kv_cache_spec`)."""


Layer = Attends | Remembers


@dataclass(frozen=True)
class CacheFormat:
    """How the cache is divided and stored, as the engine's command line sets it."""

    tensor_parallel: int = 1
    """Cards that share each layer."""
    kv_dtype: str = "auto"
    """vLLM's --kv-cache-dtype; auto follows the checkpoint."""
    state_dtype: str = "auto"
    """vLLM's --mamba-ssm-cache-dtype: the recurrent state, without the convolution before it."""
    draft_tokens: int = 0
    """Tokens that the model's own multi-token prediction head drafts; 0: no drafting."""


class Fields:
    """The fields of a config.json, and which of them were read."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values
        self.read: set[str] = set()

    def get(self, *names: str, default: Any = None) -> Any:
        """The value of the first of ``names`` that is set; all of them count as read."""
        self.read.update(names)
        return next((v for n in names if (v := self.values.get(n)) is not None), default)

    def need(self, *names: str) -> int:
        """Like `get`, for a positive number that must be set.

        Raises:
            NotUnderstood: it is missing or is not such a number.
        """
        value = self.get(*names)
        if not isinstance(value, int | float) or isinstance(value, bool) or value <= 0:
            raise NotUnderstood(
                f"config.json of model type '{self.values.get('model_type')}' has no usable"
                f" '{names[0]}' ({value!r}): copy it again if it is damaged, else {MEND}"
            )
        return int(value)

    def largest(self, *names: str, default: int) -> int:
        """Like `get`, for a number that may be a list with one item per layer: the largest."""
        value = self.get(*names, default=default)
        return int(max(value, default=default) if isinstance(value, list) else value)

    @property
    def depth(self) -> int:
        """Number of layers: the count in the file, or the length of its list of layers.

        NemotronH's files list the layers and have no count. vLLM 0.32 uses the length too
        (transformers' `NemotronHConfig.num_hidden_layers`).
        """
        named = self.get("hybrid_override_pattern", "layers_block_type")
        count = self.get("num_hidden_layers", "n_layer", "num_layers", "n_layers")
        if isinstance(named, str) or (count is None and isinstance(named, list)):
            return len(named)
        return self.need("num_hidden_layers", "n_layer", "num_layers", "n_layers")

    def unread(self, pattern: re.Pattern[str]) -> list[str]:
        """Names of fields that match ``pattern``, are set, and were never read."""
        return sorted(
            name
            for name, value in self.values.items()
            if pattern.search(name) and name not in self.read and value not in (None, False, [], {})
        )


def text_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The language model's part of ``config``. Multimodal files nest it under various names."""
    for name in ("thinker_config", "text_config", "llm_config", "language_config"):
        inner = config.get(name)
        if isinstance(inner, Mapping):
            shared = {k: config[k] for k in ("dtype", "torch_dtype") if k in config}
            return shared | text_config(inner)
    return dict(config)


# Models whose attention vLLM stores as one latent vector (its `is_deepseek_mla`). Other models may
# set kv_lora_rank and still cache full heads.
LATENT_MODELS = frozenset(
    {"axk1", "deepseek_v2", "deepseek_v3", "deepseek_v32", "glm_moe_dsa", "glm4_moe_lite"}
    | {"kimi_k2", "kimi_linear", "longcat_flash", "pangu_ultra_moe"}
)

# Fields that concern memory. If one is set and was not read, this planner does not know the model.
_MEMORY = re.compile(
    r"""mamba | ssm | conv(?!ert) | kda | delta | recurr | rwkv | lru
    | linear_(attn|attention|num|key|value) | sliding | window | swa | chunk | sparse_att
    | compress | kv_lora | kv_shared | ^index | indexer | (^|_)ple_ | cross_att | hybrid
    | layer_types | block_type | block_configs | attn_type | layer_group | full_attention
    | global_head | attention_other""",
    re.VERBOSE,
)
# Fields that match `_MEMORY` but change only the arithmetic.
_HARMLESS = re.compile(
    r"""(mtp_.* | mlp_layer_types | layernorm_.* | rescale_.* | .*_?conv_bias
    | .*rope_(interleave|theta|parameters|scaling) | mla_scale_(q|kv)_lora
    | apply_mla_qkv_lora_rescale | dual_chunk_attention_config
    | compression_config | for_llm_compressor | prefix_dense_sliding_window_pattern
    | mamba_(chunk_size|dt_.*|hidden_act|inner_layernorms|norm_before_gate|proj_bias|rms_norm
            |ssm_eps|use_mlp)
    | use_mamba_kernels | ssm_(in_|out_)?multipliers? | chunk_size(_feed_forward)?
    | hybrid_(layer_ids|block_size) | index_(n_heads|share.*) | block_.*_dim
    | attention_chunk_size | add_swa.* | swa_.*_(type|enabled))""",
    re.VERBOSE,
)

# Models with some recurrent layers, even if config.json does not list them.
_HYBRIDS = (
    *("bamba", "granitemoehybrid", "jamba", "kimi_linear", "lfm2", "minimax_m1", "minimax_text"),
    *("nemotron_h", "olmo_hybrid", "qwen3_5", "qwen3_next", "qwen4_exp", "zamba"),
)

_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "half": 2.0,
    "fp8": 1.0,
    "fp8_e4m3": 1.0,
    "fp8_e5m2": 1.0,
}


class _Reader:
    """Reads the layers of one model, as one card keeps them."""

    def __init__(self, config: Mapping[str, Any], split: CacheFormat) -> None:
        self.fields = Fields(text_config(config))
        self.split = split
        self.model_type = str(self.fields.get("model_type", default=""))
        self.kv_dtype = _kv_dtype(config, split.kv_dtype)
        # vLLM runs a float32 checkpoint in 16 bits.
        self.dtype_bytes = 2

    def layers(self) -> list[Layer]:
        builders: dict[str, Callable[[], list[Layer]]] = {
            "full": lambda: [*self.attention()],
            "sliding": lambda: [*self.attention(window=self.window())],
            "linear": self.linear,
            "mamba": self.mamba,
            "conv": self.short_convolution,
            "both": lambda: [*self.mamba(), *self.attention()],
            "none": list,
        }
        kinds = self.kinds()
        shared = int(self.fields.get("num_kv_shared_layers", default=0))
        # The last layers of Gemma 3n and 4 read the cache of earlier layers.
        kinds = kinds[: len(kinds) - shared] if shared else kinds
        blocks = self.fields.get("block_configs")
        if blocks and "attention" in blocks[0]:
            layers = [layer for block in blocks for layer in self.nas_attention(block["attention"])]
        else:
            layers = [layer for kind in kinds for layer in builders[kind]()]
        layers += self.indexers()
        if self.split.draft_tokens:
            heads = self.drafting_layers()
            layers += [layer for _ in range(heads) for layer in self.attention()]
        self.fields.get("mtp_num_hidden_layers", "num_nextn_predict_layers")
        self.refuse_unknown()
        return layers

    def window(self) -> int:
        """Tokens of a sliding window; Cohere's includes the current token (`commandr.py`)."""
        itself = int(self.model_type.startswith("cohere2"))
        return self.fields.need("sliding_window") + itself

    def drafting_layers(self) -> int:
        """Layers of the model's own drafting head.

        Qwen3-Next has one that config.json does not mention (vLLM 0.32, `qwen3_next_mtp.py`).
        """
        names = ("mtp_num_hidden_layers", "num_nextn_predict_layers")
        if self.model_type == "qwen3_next" and self.fields.get(*names) is None:
            return 1
        return self.fields.need(*names)

    def refuse_unknown(self) -> None:
        unread = [n for n in self.fields.unread(_MEMORY) if not _HARMLESS.fullmatch(n)]
        if unread:
            raise NotUnderstood(
                f"config.json of model type '{self.model_type}' sets {', '.join(unread)}, which"
                f" may change what it caches and is not understood here: {MEND}"
            )

    # ---- which layer is of which kind ------------------------------------------------------

    def kinds(self) -> list[str]:
        """The kind of each layer: full, sliding, linear, mamba, conv, both or none."""
        f = self.fields
        if self.model_type == "longcat_flash":
            return ["full"] * (2 * f.need("num_layers"))
        blocks = f.get("block_configs")
        if blocks and "block_type" in blocks[0]:
            return self.words([block["block_type"] for block in blocks])
        count = f.depth
        # A list of layers makes these fields redundant, so they count as read.
        f.get("sliding_window", "use_sliding_window", "max_window_layers", "sliding_window_size")
        f.get("sliding_window_pattern", "_sliding_window_pattern", "full_attention_interval")
        for reading in (self.listed, self.flagged, self.periodic, self.windowed):
            kinds = reading(count)
            if kinds:
                if len(kinds) < count:
                    raise NotUnderstood(
                        f"config.json lists {len(kinds)} layer types for {count} layers:"
                        " complete the file"
                    )
                return kinds[:count]
        if self.model_type in ("mamba", "falcon_mamba", "mamba2"):
            return ["mamba"] * count
        if self.model_type.startswith(_HYBRIDS):
            raise NotUnderstood(
                f"config.json of model type '{self.model_type}' does not list its layer types"
                " (layer_types): copy it again from where the model was published"
            )
        return ["both" if self.model_type == "falcon_h1" else "full"] * count

    def words(self, words: list[str]) -> list[str]:
        known = {
            "full_attention": "full",
            "attention": "full",
            "indexed_attention": "full",
            "deepseek_sparse_attention": "full",
            # vLLM gives chunked layers a full cache, unless an environment variable changes that
            # (VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE).
            "chunked_attention": "full",
            "sliding_attention": "sliding",
            "linear_attention": "linear",
            "mamba": "mamba",
            "mamba2": "mamba",
            "conv": "conv",
            "hybrid": "both",
            "mlp": "none",
            "moe": "none",
        }
        if self.fields.get("mamba_d_state", "ssm_state_size", "state_size") is not None:
            # Transformers 5 writes this word for every recurrent layer.
            known["linear_attention"] = "mamba"
        unknown = sorted(set(words) - set(known))
        if unknown:
            raise NotUnderstood(
                f"config.json of model type '{self.model_type}' has layers of type"
                f" {', '.join(unknown)}, which are not understood here: {MEND}"
            )
        return [known[word] for word in words]

    def listed(self, count: int) -> list[str]:
        """Kinds from a list or a string that names every layer."""
        f = self.fields
        if words := f.get("layer_types", "layers_block_type"):
            return self.words(list(words))
        if isinstance(pattern := f.get("hybrid_override_pattern"), str):
            letters = {"M": "mamba", "*": "full", "-": "none", "E": "none"}
            if set(pattern) - set(letters):
                raise NotUnderstood(
                    f"hybrid_override_pattern '{pattern}' has letters other than M * - E"
                )
            return [letters[letter] for letter in pattern]
        return []

    def flagged(self, count: int) -> list[str]:
        """Kinds from flags or indices that mark the attention layers."""
        f = self.fields
        if flags := f.get("attn_type_list"):
            return ["full" if flag == 1 else "linear" for flag in flags]
        if flags := f.get("hybrid_layer_pattern"):
            return ["sliding" if flag == 1 else "full" for flag in flags]
        if linear := f.get("linear_attn_config"):
            # Kimi Linear counts layers from 1.
            full = set(linear["full_attn_layers"])
            return ["full" if i + 1 in full else "linear" for i in range(count)]
        if indices := f.get("attn_layer_indices", "full_attn_idxs"):
            rest = "conv" if self.model_type.startswith("lfm2") else "mamba"
            return ["full" if i in set(indices) else rest for i in range(count)]
        return []

    def periodic(self, count: int) -> list[str]:
        """Kinds from a period: every n-th layer is an attention layer."""
        f = self.fields
        if period := f.get("attn_layer_period"):
            offset = int(f.get("attn_layer_offset", default=0))
            return ["full" if i % period == offset else "mamba" for i in range(count)]
        if period := f.get("full_attention_interval"):
            return ["linear" if (i + 1) % period else "full" for i in range(count)]
        if period := f.get("layer_group_size"):
            return ["linear" if (i + 1) % period else "full" for i in range(count)]
        return []

    def windowed(self, count: int) -> list[str]:
        """Kinds from a sliding window, which every layer has, or all but every n-th."""
        f = self.fields
        window = f.get("sliding_window")
        from_layer = f.get("max_window_layers")
        pattern = f.get("sliding_window_pattern", "_sliding_window_pattern")
        used = f.get("use_sliding_window")
        if not window or used is False:
            return []
        if used and from_layer is not None:
            return ["sliding" if i >= from_layer else "full" for i in range(count)]
        # Periods that Hugging Face uses when the file has none.
        periods = {"gemma2": 2, "gemma3_text": 6, "gemma3n_text": 5, "cohere2": 4}
        if isinstance(pattern, str):
            return ["sliding" if pattern[i % len(pattern)] == "L" else "full" for i in range(count)]
        if period := pattern or periods.get(self.model_type):
            return ["sliding" if (i + 1) % int(period) else "full" for i in range(count)]
        if self.model_type == "gpt_oss":
            return ["full" if i % 2 else "sliding" for i in range(count)]
        return ["sliding"] * count

    # ---- what a layer of each kind keeps ---------------------------------------------------

    def attention(self, window: int | None = None) -> Iterator[Layer]:
        f = self.fields
        rank = f.get("kv_lora_rank")
        if rank and self.model_type in LATENT_MODELS:
            yield self.latent(rank + f.need("qk_rope_head_dim"))
            return
        # The published file has an architecture but no model type.
        is_minicpm3 = "MiniCPM3ForCausalLM" in (f.values.get("architectures") or ())
        if rank and (is_minicpm3 or self.model_type == "minicpm3"):
            # Its weights are compressed, but its cache is not (`minicpm3.py`).
            width = f.need("qk_nope_head_dim") + f.need("qk_rope_head_dim")
            heads = self.heads_here(f.need("num_attention_heads"))
            yield Attends(heads * 2 * self.stored(width))
            return
        if rank:
            raise NotUnderstood(
                f"model type '{self.model_type}' compresses keys and values (kv_lora_rank) in a"
                f" way not understood here: {MEND}"
            )
        heads = f.get("num_attention_heads", "n_head", "n_heads", "num_heads")
        kv_heads = f.get(
            *("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num"),
            "num_attention_groups",
            default=(f.get("attn_config") or {}).get("kv_n_heads"),
        )
        if f.get("multi_query") and not f.get("new_decoder_architecture"):
            kv_heads = 1
        head_dim = f.get("head_dim", "attention_head_dim", "kv_channels", "hidden_size_per_head")
        if heads is None:
            f.need("num_attention_heads")
        head_dim = head_dim or f.need("hidden_size", "n_embd", "d_model") // heads
        value_dim = f.get("v_head_dim") or head_dim
        kv_heads = kv_heads or heads
        if min(heads, kv_heads, head_dim, value_dim) < 1:
            raise NotUnderstood(
                "config.json has fewer than one head or head size: complete the file"
            )
        # In Transformers 5, Gemma 4 has heads of 512 unless the file says otherwise.
        wide = 512 if self.model_type.startswith("gemma4") else None
        global_dim = f.get("global_head_dim", default=wide)
        global_heads = f.get("num_global_key_value_heads")
        if window is None:
            # In Gemma 4, layers with full attention have fewer and wider heads.
            head_dim, value_dim = global_dim or head_dim, global_dim or value_dim
            kv_heads = global_heads or kv_heads
        else:
            kv_heads = f.get("swa_num_key_value_heads", default=kv_heads)
            head_dim = f.get("swa_head_dim", default=head_dim)
            value_dim = f.get("swa_v_head_dim", default=value_dim)
        f.get(
            "swa_num_attention_heads", "swa_num_key_value_heads", "swa_head_dim", "swa_v_head_dim"
        )
        yield Attends(
            self.heads_here(kv_heads) * (self.stored(head_dim) + self.stored(value_dim)), window
        )

    def nas_attention(self, block: Mapping[str, Any]) -> Iterator[Layer]:
        """A layer of Nemotron NAS (Super, Ultra); some have no attention, others fewer heads."""
        heads = self.fields.need("num_attention_heads")
        if block.get("n_heads_in_group"):
            dim = self.fields.get("head_dim") or self.fields.need("hidden_size") // heads
            kv_heads = self.heads_here(heads // int(block["n_heads_in_group"]))
            yield Attends(kv_heads * 2 * self.stored(dim))

    def heads_here(self, kv_heads: int) -> int:
        """Heads on one card; if there are more cards than heads, several cards keep each head."""
        cards = self.split.tensor_parallel
        if kv_heads % cards and cards % kv_heads:
            raise NotUnderstood(
                f"{kv_heads} key-value heads cannot be shared by {cards} cards: choose a tensor"
                " parallel size that divides them, or is a multiple of them"
            )
        return max(1, kv_heads // cards)

    def divided(self, number: int, what: str) -> int:
        if number % self.split.tensor_parallel:
            raise NotUnderstood(
                f"{what} ({number}) cannot be divided by {self.split.tensor_parallel} cards:"
                " choose another tensor parallel size"
            )
        return number // self.split.tensor_parallel

    def stored(self, elements: int) -> int:
        """Bytes that ``elements`` numbers of one head take in the cache.

        NVFP4 packs two numbers into a byte and adds one scale for sixteen numbers. The
        per-token-head formats add one float32 scale (vLLM 0.32, `flashinfer.py` and
        `triton_attn.py`, `customize_spec`).
        """
        if self.kv_dtype == "auto":
            return elements * self.dtype_bytes
        if self.kv_dtype in ("int8_per_token_head", "fp8_per_token_head"):
            return elements + 4
        if self.kv_dtype == "int4_per_token_head":
            return elements // 2 + 4
        if self.kv_dtype == "nvfp4":
            return elements // 2 + elements // 16
        if self.kv_dtype in _BYTES:
            return int(elements * _BYTES[self.kv_dtype])
        raise NotUnderstood(
            f"the cache format '{self.kv_dtype}' is not understood here: use auto, fp8, nvfp4 or"
            " one of the per-token-head formats"
        )

    def latent(self, width: int) -> Attends:
        is_sparse = self.fields.get("index_topk") is not None
        if is_sparse and self.kv_dtype.startswith("fp8"):
            # 512 fp8, 4 float32 scales and 64 bfloat16 (vLLM 0.32, `flashmla_sparse.py`).
            return Attends(656, is_latent=True)
        return Attends(self.stored(width), is_latent=True)

    def indexers(self) -> list[Layer]:
        """The second cache of sparse attention: the keys that select tokens.

        DeepSeek stores fp8 numbers and one float32 scale for 128 of them (vLLM 0.32,
        `deepseek_v2.py`).
        """
        f = self.fields
        sparse = self.fields.values.get("sparse_attention_config") or {}
        if "sparse_attention_freq" in sparse and "sparse_index_dim" in sparse:
            # MiniMax M3 keeps one key per token in layers that select blocks
            # (`minimax_m3/common`).
            f.get("sparse_attention_config")
            chosen = sum(map(bool, sparse["sparse_attention_freq"]))
            return [Attends(2 * int(sparse["sparse_index_dim"]), is_latent=True)] * chosen
        if self.model_type not in LATENT_MODELS or f.get("index_topk") is None:
            return []
        width = f.need("index_head_dim")
        f.get("indexer_types", "index_skip_topk_offset", "index_topk_freq", "index_topk_pattern")
        frequency = int(f.get("index_topk_freq", default=1))
        offset = int(f.get("index_skip_topk_offset", default=2))
        pattern = f.get("index_topk_pattern")
        count = f.depth
        own = [
            pattern[i] != "S" if pattern else max(i - offset + 1, 0) % frequency == 0
            for i in range(count)
        ]
        return [Attends(width + width // 128 * 4, is_latent=True)] * sum(own)

    def state(self, convolution: int, recurrent: int, default_dtype: str = "auto") -> Remembers:
        """A state on one card, from its count of convolution and of recurrent numbers."""
        dtype = self.split.state_dtype
        if dtype == "auto":
            dtype = self.fields.get(
                "mamba_ssm_dtype", "mamba_ssm_cache_dtype", default=default_dtype
            )
        else:
            self.fields.get("mamba_ssm_dtype", "mamba_ssm_cache_dtype")
        if dtype != "auto" and dtype not in _BYTES:
            raise NotUnderstood(
                f"the state format '{dtype}' is not understood here: use float32 or bfloat16"
            )
        size = self.dtype_bytes if dtype == "auto" else int(_BYTES[dtype])
        return Remembers(convolution * self.dtype_bytes + recurrent * size)

    def linear(self) -> list[Layer]:
        """Gated delta net (Qwen 3 Next to 3.8), Kimi's delta attention, or lightning attention."""
        f, drafts = self.fields, self.split.draft_tokens
        if kimi := f.get("linear_attn_config") or f.get("linear_num_heads"):
            if not isinstance(kimi, Mapping):
                # Transformers 5 writes the number of heads here.
                dim, kernel = f.need("linear_head_dim"), f.need("linear_conv_kernel_dim")
                kimi = {"num_heads": kimi, "head_dim": dim, "short_conv_kernel_size": kernel}
            heads, dim = int(kimi["num_heads"]), int(kimi["head_dim"])
            width = self.divided(3 * heads * dim, "the width of the linear layers")
            kernel = int(kimi["short_conv_kernel_size"])
            recurrent = self.divided(heads, "linear heads") * dim * dim
            return [self.state(width * (kernel - 1 + drafts), recurrent, "float32")]
        if f.get("linear_num_value_heads"):
            key_dim, value_dim = f.need("linear_key_head_dim"), f.need("linear_value_head_dim")
            values = f.need("linear_num_value_heads")
            width = 2 * f.need("linear_num_key_heads") * key_dim + values * value_dim
            width = self.divided(width, "the width of the linear layers")
            kernel = f.need("linear_conv_kernel_dim")
            recurrent = self.divided(values, "linear value heads") * value_dim * key_dim
            return [self.state(width * (kernel - 1 + drafts), recurrent)]
        if self.model_type in ("minimax_text_01", "minimax_m1", "minimax", "bailing_moe_linear"):
            heads = f.need("num_attention_heads")
            dim = f.get("head_dim") or f.need("hidden_size") // heads
            recurrent = self.divided(heads, "linear heads") * dim * dim
            return [Remembers(recurrent * self.dtype_bytes)]
        raise NotUnderstood(
            f"the linear attention of model type '{self.model_type}' is not understood here: {MEND}"
        )

    def mamba(self) -> list[Layer]:
        f, cards, drafts = self.fields, self.split.tensor_parallel, self.split.draft_tokens
        heads = f.get("mamba_num_heads", "mamba_n_heads", "n_mamba_heads")
        dim = f.get("mamba_head_dim", "mamba_d_head", "mamba_headdim")
        if self.model_type == "mamba2":
            heads, dim = f.need("num_heads"), f.need("head_dim")
        size = f.need("ssm_state_size", "mamba_d_state", "state_size")
        kernel = f.need("conv_kernel", "mamba_d_conv")
        expand = f.get("mamba_expand", "expand", default=2)
        inner = f.get("mamba_d_ssm", "mamba_intermediate_size")
        if heads is None:
            # The first Mamba (Jamba, Falcon Mamba) has no heads and no groups.
            inner = f.get("intermediate_size") if "mamba" in self.model_type else None
            inner = self.divided(
                inner or int(expand * f.need("hidden_size")), "the width of the Mamba layers"
            )
            return [self.state(inner * (kernel - 1), inner * size)]
        if not isinstance(dim, int):
            dim = int(inner or expand * f.need("hidden_size")) // heads
        groups = int(f.get("n_groups", "mamba_n_groups", "mamba_ngroups", default=1))
        # If groups do not divide by the cards, vLLM copies them, so that each head has its group.
        groups += 0 if groups % cards == 0 else cards - groups
        width = self.divided(heads * dim + 2 * groups * size, "the width of the Mamba layers")
        recurrent = self.divided(heads, "Mamba heads") * dim * size
        default = "float32" if self.model_type.startswith("nemotron_h") else "auto"
        state = self.state(width * (kernel - 1 + drafts), recurrent, default)
        return [replace(state, is_mamba2=True)]

    def short_convolution(self) -> list[Layer]:
        """The short convolution of Liquid's LFM2: it keeps a few earlier columns."""
        f = self.fields
        width = self.divided(f.need("conv_dim", "hidden_size"), "the width of the convolution")
        f.get("conv_dim_out", "conv_use_xavier_init")
        return [Remembers(width * (f.need("conv_L_cache") - 1) * self.dtype_bytes)]


def quantisation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's description of its number formats; empty if it has none.

    It is read where vLLM 0.32 reads it: at the top level, in the language model's part, or as
    compression_config (`model_arch_config_convertor.py`, `get_quantization_config`).
    """
    text = text_config(config)
    found = config.get("quantization_config") or text.get("quantization_config")
    return dict(found or config.get("compression_config") or {})


def _kv_dtype(config: Mapping[str, Any], asked: str) -> str:
    """The cache format. As in vLLM, auto is the format for which the checkpoint was calibrated.

    ModelOpt: `torch_utils.py`, `get_kv_cache_quant_algo_string`; an older hf_quant_config.json
    names ModelOpt as its `producer` instead of its method. compressed-tensors: any kv_cache_scheme
    makes the cache fp8 (`attention.py`), and vLLM accepts only 8-bit floats
    (`compressed_tensors.py`).
    """
    if asked != "auto":
        return {"fp8_ds_mla": "fp8", "bfloat16": "auto", "float16": "auto"}.get(asked, asked)
    found = quantisation_config(config)
    inner = found.get("quantization")
    inner = inner if isinstance(inner, Mapping) else found
    method = str(found.get("quant_method", "")).lower().replace("_", "-")
    scheme = inner.get("kv_cache_scheme") or found.get("kv_cache_scheme")
    if method == "compressed-tensors":
        if scheme and (scheme.get("type"), scheme.get("num_bits")) != ("float", 8):
            raise NotUnderstood(
                f"the checkpoint requests a cache of {scheme.get('num_bits')}-bit"
                f" {scheme.get('type')}, which vLLM refuses: set another kv_dtype"
            )
        return "fp8" if scheme else "auto"
    by_modelopt = (found.get("producer") or {}).get("name") == "modelopt"
    if not (method.startswith("modelopt") or by_modelopt):
        return "auto"
    if isinstance(scheme, Mapping):
        bits = scheme.get("num_bits") if scheme.get("type") == "float" else None
        if bits == 8 and scheme.get("dynamic") is not False:
            bits = None
        return {8: "fp8", 4: "nvfp4"}.get(bits or 0, "auto")
    named = scheme or inner.get("kv_cache_quant_algo") or found.get("kv_cache_quant_algo")
    return {"fp8": "fp8", "nvfp4": "nvfp4"}.get(str(named).lower(), "auto")


# Models that read a text in both directions (vLLM 0.32: `AttentionType.ENCODER_ONLY` in bert.py,
# roberta.py, modernbert.py, bert_with_rope.py, embedding_gemma2.py, siglip.py).
_ENCODERS = frozenset(
    {"bert", "roberta", "xlm-roberta", "modernbert", "nomic_bert", "new", "gte", "embedding_gemma2"}
    | {"siglip", "siglip_text_model"}
)
# Decoders whose use_bidirectional_attention vLLM reads (`models/config.py`). In PaliGemma's Gemma
# the field concerns images only.
_TURNED = ("gemma3",)


def is_encoder_only(config: Mapping[str, Any]) -> bool:
    """Whether the model is an embedder or reranker that reads both directions and keeps no cache.

    It is one if it has text segments (type_vocab_size) or predicts masked words, which only such
    models do; if its model type is one of them; or if config.json makes a decoder one: is_causal
    false (`llama.py`, `qwen3.py`), an architecture or a retrieval contract that is bidirectional,
    or one of the fields that `models/config.py` reads.
    """
    text = text_config(config)
    kind = str(text.get("model_type", "")).removesuffix("_text")
    architectures = " ".join(map(str, config.get("architectures") or ()))
    return (
        kind in _ENCODERS
        or kind.endswith("_bidirec")
        or "Bidirectional" in architectures
        or "ForMaskedLM" in architectures
        or text.get("is_causal") is False
        or (text.get("type_vocab_size") is not None and text.get("is_decoder") is not True)
        or (kind.startswith(_TURNED) and text.get("use_bidirectional_attention") is True)
        or ("JinaEmbeddingsV5Model" in architectures and text.get("is_decoder") is False)
        or "bidirectional"
        in (config.get("retrieval_attention_contract"), text.get("retrieval_attention_contract"))
    )


# Drafting heads for other models (vLLM 0.32, `registry.py`, `_SPECULATIVE_DECODING_MODELS`).
_DRAFTS = re.compile(
    r"eagle\d*(?!_?2_5_vl)|mtp|dflash|dspark|medusa|draft|speculator", re.IGNORECASE
)


def _drafts_alone(config: Mapping[str, Any]) -> bool:
    """Whether this is a drafting head without its model."""
    return config.get("speculators_model_type") is not None or any(
        _DRAFTS.search(str(name)) for name in config.get("architectures") or ()
    )


def layers(config: Mapping[str, Any], split: CacheFormat | None = None) -> list[Layer]:
    """Every layer of the model that uses the cache, on one card; empty for an encoder.

    Raises:
        NotUnderstood: an unknown field may change the cache, or the cards cannot share a layer.
    """
    kind = config.get("model_type", "")
    text = text_config(config)
    if _drafts_alone(config):
        raise NotUnderstood(
            "config.json describes a drafting head"
            f" ({', '.join(config.get('architectures') or [kind])}) for another model, which vLLM"
            " cannot serve alone: name that model"
        )
    if config.get("is_encoder_decoder") or text.get("is_encoder_decoder"):
        raise NotUnderstood(
            f"'{kind}' is an encoder-decoder model; its second cache is not planned here: {MEND}"
        )
    if "num_attention_heads" not in text and config.get("text_config") is not None:
        raise NotUnderstood(
            f"the text_config of model type '{kind}' has no num_attention_heads: write the sizes"
            " of the language model into it"
        )
    if is_encoder_only(config):
        return []
    return _Reader(config, split or CacheFormat()).layers()
