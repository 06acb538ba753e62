"""The planner against what others published: `python -m holdfast.fit.cases` writes docs/fit.md.

A case gives a model, settings and what vLLM logged. Where it logged the memory of its cache, the
planner starts from that and must find blocks, tokens and concurrency; where it logged only tokens,
from the blocks. GiB in a log are rounded to two places, so blocks lie in a narrow range, and
they must be in it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.fit.planner import GIB, MIB, Card, EngineSettings, Fit, load, plan
from holdfast.fit.weights import Weights

DATA = Path("tests/unit/data/fit")
PAGE = Path("docs/fit.md")
ROUNDED_GIB = 0.005
"""Half of the last place of a GiB figure in vLLM's log."""


@dataclass(frozen=True)
class Comparison:
    """One published figure beside the planner's."""

    case: str
    what: str
    published: float
    planned: float
    is_exact: bool
    """Whether the published figure is met within its own last place and that of the memory."""
    source: str

    @property
    def error_percent(self) -> float:
        """How far the planner is off."""
        return 100 * (self.planned - self.published) / self.published


def fit_of(case: dict[str, Any], folder: Path, cache_gib: float | None) -> Fit:
    """The plan of a case, with so much memory for the cache, or with what the planner computes."""
    model_folder = folder / case["model"]
    has_index = (model_folder / "model.safetensors.index.json").is_file()
    model = load(model_folder, None if has_index else Weights(total_bytes=1))
    settings: dict[str, Any] = dict(case["engine"])
    if cache_gib is not None:
        settings["kv_cache_mib"] = cache_gib * GIB / MIB
    engine = EngineSettings(**settings)
    usable = int(case.get("usable_gib", 80) * GIB / MIB)
    cards = [Card(total_mib=usable, usable_mib=usable)] * engine.tensor_parallel
    fit = plan(model, cards, engine)
    return replace(fit, blocks=case["blocks"]) if "blocks" in case else fit


def _figures(fit: Fit) -> dict[str, float]:
    request_bytes = fit.pool.blocks_per_request(fit.context_tokens) * fit.pool.block_bytes
    return {
        "blocks": fit.blocks,
        "block_tokens": fit.pool.block_tokens,
        "tokens": fit.cache_tokens,
        "concurrency": fit.concurrency,
        "longest": fit.longest_tokens,
        "needed_gib": request_bytes / GIB,
        "bytes_per_token": fit.bytes_per_token,
        "state_mib": fit.state_bytes / MIB,
        "weights_gib": fit.cards[0].weight_bytes / GIB,
        "cache_gib": fit.cards[0].cache_bytes / GIB,
    }


def compare(case: dict[str, Any], folder: Path = DATA) -> Iterator[Comparison]:
    """Every figure the case publishes, with the planner's."""
    gib = case.get("cache_gib")
    rounded = ROUNDED_GIB if gib and not float(gib).is_integer() else 0
    planned, least, most = (
        _figures(fit_of(case, folder, None if gib is None else gib + change))
        for change in (0, -rounded, rounded)
    )
    # What the planner makes of the card alone, not of the logged memory.
    planned["cache_gib"] = _figures(fit_of(case, folder, None))["cache_gib"]
    for what, published in case["published"].items():
        half = 0 if isinstance(published, int) else 0.5 * 10 ** -len(str(published).split(".")[1])
        is_exact = least[what] - half <= published <= most[what] + half
        if what == "cache_gib":
            is_exact = abs(planned[what] - published) <= half
        yield Comparison(case["name"], what, published, planned[what], is_exact, case["source"])


def load_cases(folder: Path = DATA) -> list[dict[str, Any]]:
    """The cases in ``folder``/cases.json."""
    cases: list[dict[str, Any]] = json.loads((folder / "cases.json").read_text())
    return cases


_WORDS = {
    "blocks": "blocks",
    "block_tokens": "block, tokens",
    "tokens": "cache, tokens",
    "concurrency": "concurrency",
    "longest": "longest context, tokens",
    "needed_gib": "one request, GiB",
    "bytes_per_token": "bytes a token",
    "state_mib": "state a sequence, MiB",
    "weights_gib": "weights, GiB",
    "cache_gib": "memory for the cache, GiB",
}


def _number(value: float) -> str:
    if isinstance(value, int) or value > 1000:
        return f"{value:,.0f}"
    return f"{value:.2f}"


def page(folder: Path = DATA) -> str:
    """docs/fit.md."""
    lines = [
        "# The fit planner against published figures",
        "",
        "Written by `python -m holdfast.fit.cases`; a test fails when it is not up to date.",
        "",
        "Figures are those of vLLM's own log, or of its refusal, in the thread named, planned for"
        " the version that logged them. From the memory that vLLM logged for its cache the planner"
        ' computes blocks, tokens and concurrency. vLLM rounds that memory to 0.01 GiB: "within'
        ' rounding" says that the published figure lies where such a memory leads. With several'
        " cards vLLM takes the blocks of the card with the least and logs the memory of the first:"
        ' those rows are marked *. "memory for the cache" is computed from the card alone and so'
        " tests weights and the estimated reserve.",
        "",
        "Beside these, 648 random settings of the models in tests/unit/data/fit were run through"
        " vLLM 0.32's own allocator (`get_kv_cache_configs`): blocks, tokens and whether it would"
        " start were the same in all; allocator.json there keeps a sample as a test.",
        "",
        "| case | figure | published | planned | error | within rounding | source |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    for case in load_cases(folder):
        mark = " *" if case.get("least_of_cards") else ""
        for row in compare(case, folder):
            lines.append(
                f"| {row.case}{mark} | {_WORDS[row.what]} | {_number(row.published)} |"
                f" {_number(row.planned)} | {row.error_percent + 0:+.2f} % |"
                f" {'yes' if row.is_exact else 'no'} | {row.source} |"
            )
    lines += [
        "",
        "## Limits",
        "",
        "- Activations, CUDA graphs and what CUDA and NCCL hold are estimates, each with its source"
        " in `planner.py`. Give `--reserve-mib` or `--kv-cache-mib` where vLLM's log tells.",
        "- Kernels may want other blocks than vLLM's default (`--block-tokens`); with FlashKDA,"
        " Kimi Linear keeps a third state.",
        "- Some kernels pad weights when loading: gpt-oss 120B takes 66.0 GiB on an H100 for 60.8"
        " GiB of files (vllm#23278). The planner counts files.",
        "- Not understood, and refused: DeepSeek V4 and other compressed caches, Qwen3.8 Flash"
        " Next, GLM 5.3 Flash, encoder-decoder models, separate drafting models, pipeline and"
        " context parallelism, GGUF.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"wrote {PAGE}", file=sys.stderr)  # noqa: T201
