"""The planner against published figures: `python -m holdfast.fit.cases` writes docs/fit.md.

A case has a model, settings and figures from vLLM's log. If the log has the memory of the cache,
the planner starts from it and computes blocks, tokens and concurrency; else it starts from the
blocks. GiB in a log are rounded to two places, so blocks must lie in a narrow range. The logs in
`logs` judge the estimates from the card alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from holdfast.fit.logs import DATA, Judgement, judge, load_logs, summary
from holdfast.fit.planner import GIB, MIB, Card, EngineSettings, Fit, load, plan
from holdfast.fit.weights import Weights

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
    """Whether the two agree within the rounding of the published figure and of the memory."""
    source: str
    mark: str
    """Why the figure is no proof of the planner's accuracy; empty if it is one."""

    @property
    def error_percent(self) -> float:
        """Error of the planner, in per cent of the published figure."""
        return 100 * (self.planned - self.published) / self.published


def fit_of(case: dict[str, Any], folder: Path, cache_gib: float | None) -> Fit:
    """The plan of a case, with the given memory for the cache; None: the planner computes it."""
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


def mark(case: dict[str, Any], what: str) -> str:
    """Why a figure of ``case`` is no proof of accuracy; empty if it is one."""
    if what == "cache_gib":
        return "fitted to"
    if "blocks" in case and what == "blocks":
        return "input"
    if "run here" in case["source"]:
        return "own run"
    if "by hand" in case["source"]:
        return "by hand"
    return "from given blocks" if "blocks" in case else ""


def compare(case: dict[str, Any], folder: Path = DATA) -> Iterator[Comparison]:
    """Every published figure of the case, with the planner's."""
    gib = case.get("cache_gib")
    rounded = ROUNDED_GIB if gib and not float(gib).is_integer() else 0
    planned, least, most = (
        _figures(fit_of(case, folder, None if gib is None else gib + change))
        for change in (0, -rounded, rounded)
    )
    # Computed from the card alone, without the logged memory.
    planned["cache_gib"] = _figures(fit_of(case, folder, None))["cache_gib"]
    for what, published in case["published"].items():
        half = 0 if isinstance(published, int) else 0.5 * 10 ** -len(str(published).split(".")[1])
        is_exact = least[what] - half <= published <= most[what] + half
        if what == "cache_gib":
            is_exact = abs(planned[what] - published) <= half
        yield Comparison(
            case["name"], what, published, planned[what], is_exact, case["source"], mark(case, what)
        )


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


def _sentence(found: Sequence[Judgement]) -> str:
    """The claims about ``found``, in one line."""
    of = summary(found)
    refused = sum(each.log.refused for each in found)
    return (
        f"{of['logs']:.0f} logs: median error {of['median']:.1f} % of the budget, worst"
        f" {of['worst']:.1f} %, {of['beyond']:.0f} beyond 5 %; most promised too much"
        f' {of["most promised too much"]:.1f} %; {of["false fits"]:.0f} false "fits" (vLLM refused'
        f" {refused}), {of['false refusals']:.0f} false refusals (worst"
        f" {of['worst false refusal']:.1f} %)"
    )


def _judged(title: str, found: Sequence[Judgement]) -> Iterator[str]:
    yield from (f"### {title}", "", f"{_sentence(found)}.", "")
    yield "| log | card | version | GiB logged | GiB planned | error | verdict | source |"
    yield "|---|---|---|---:|---:|---:|---|---|"
    for each in found:
        log = each.log
        verdict = f"{'refused' if log.refused else 'started'}, {_said(each)}"
        assumed = f" (assumed: {', '.join(log.assumed)})" if log.assumed else ""
        yield (
            f"| {log.name}{assumed} | {log.card} | 0.{log.engine.vllm_minor} |"
            f" {log.cache_gib:.2f} | {each.cache_gib:.2f} | {each.error_percent + 0:+.1f} % |"
            f" {verdict} | {log.source} |"
        )
    yield ""


def _said(each: Judgement) -> str:
    return "fits" if each.fit.fits else "does not fit"


def judged(half: str, folder: Path = DATA) -> list[Judgement]:
    """The logs of one half beside the planner's figures."""
    return [judge(log, folder) for log in load_logs(folder) if log.half == half]


def page(folder: Path = DATA) -> str:
    """docs/fit.md."""
    rows = [
        (row, " *" if case.get("least_of_cards") else "")
        for case in load_cases(folder)
        for row in compare(case, folder)
    ]
    proof = [row for row, _ in rows if not row.mark]
    worst = max(proof, key=lambda row: abs(row.error_percent))
    lines = [
        "# The fit planner against published figures",
        "",
        "Written by `python -m holdfast.fit.cases`, which also prints the result of the"
        " judging half; a test fails when this page is out of date.",
        "",
        "## Memory for the cache, from the card alone",
        "",
        "tests/unit/data/fit/logs.json contains published logs of vLLM starts. The planner"
        " gets the card, the settings and the weights as loaded (gpt-oss 120B: the size of the"
        " files) and computes the memory for the cache. Errors are per cent of the budget"
        " (utilisation x card), above 0 if it promises too much. A hash of its name assigns"
        " each log to one of the halves; the split was committed before anything was fitted.",
        "",
        *_judged("Judging half", judged("judging", folder)),
        "No constant was fitted to this half. Twice its worst logs were the reason to read"
        " vLLM's source again, and the planner was corrected from the source:",
        "",
        '- At the commit "the reserve is measured as vLLM measures it" (23 logs, median 1.6 %,'
        " worst 20.5 %): the second runner's sampler needs less than was planned.",
        '- At the commit "six more logs, four of them refused starts" (29 logs, median 2.1 %,'
        " worst 7.9 %, two beyond 5 %): the embedder on the T4 (-6.3 %) was planned with an image"
        " of 16,384 tokens, but its preprocessor_config.json allows 1,280. On the laptop card"
        " (-7.9 %) four copies of the logits were planned, but vLLM holds one; and the sampler's"
        " memory for penalties was counted as CUDA's.",
        "- The same reading corrected figures that no log had shown: the number format in which"
        " the first runner samples, the version that first subtracts the graphs from the budget,"
        " the memory that NVFP4 experts keep, and the videos of Qwen2-VL and Qwen2.5-VL.",
        "",
        "So these are not figures of unseen logs. Nine logs were searched for after the first"
        " fitting and judged as found: six because this half had no start that vLLM refused,"
        " Qwen2.5-VL because its video had been planned 13 GiB too small, and two of Qwen3 8B on a"
        " 4090 to check the memory that the sampler keeps.",
        "",
        *_judged("Fitting half", judged("fitting", folder)),
        "The constants of `reserve.py` were fitted to this half, so it proves nothing.",
        "",
        "Rules made in advance excluded memory that processor and card share (GB10), other makers"
        " than NVIDIA, LoRA, GGUF, patched builds, pipeline parallelism, logs without the flags"
        " that decide the figures, and models that the planner refuses. Texts without a known"
        " repository address are cited by title, with the line of the log in logs.json.",
        "",
        "## Blocks, tokens and concurrency, from the logged memory",
        "",
        "The published figures are from vLLM's log, or from its refusal, in the named thread. They"
        " are planned for the version that logged them. From the memory that vLLM logged for its"
        " cache, the planner computes blocks, tokens and concurrency. vLLM rounds that memory to"
        ' 0.01 GiB; "within rounding" means that the published figure is possible with a memory in'
        " that range. With several cards vLLM uses the blocks of the card with the fewest and logs"
        " the memory of the first card; those rows are marked *.",
        "",
        'The column "no proof" says why a row proves little or nothing about accuracy: the figure'
        " is itself the input; it follows from blocks that were given; it is from a run of vLLM's"
        " allocator here, not from a published log; it was computed by hand; or the first"
        " constants of the reserve were fitted to it.",
        "",
        f"Accuracy is claimed for the other {len(proof)} figures only:"
        f" {sum(row.is_exact for row in proof)} lie within rounding, and the worst error is"
        f" {worst.error_percent:+.2f} % ({worst.case}, {_WORDS[worst.what]}).",
        "",
        "Also, 648 random settings of the models in tests/unit/data/fit were run through vLLM"
        " 0.32's own allocator (`get_kv_cache_configs`). Blocks, tokens and the decision to start"
        " were the same in all. A test uses a sample of them (allocator.json).",
        "",
        "| case | figure | published | planned | error | within rounding | no proof | source |",
        "|---|---|---:|---:|---:|---|---|---|",
    ]
    lines += [
        f"| {row.case}{star} | {_WORDS[row.what]} | {_number(row.published)} |"
        f" {_number(row.planned)} | {row.error_percent + 0:+.2f} % |"
        f" {'yes' if row.is_exact else 'no'} | {row.mark} | {row.source} |"
        for row, star in rows
    ]
    lines += [
        "",
        "## Limits",
        "",
        "- Activations, CUDA graphs and the memory of CUDA and NCCL are estimates, each with its"
        " source in `reserve.py`. Give `--reserve-mib` or `--kv-cache-mib` if vLLM's log has the"
        " figure.",
        "- Errors are largest for small budgets: a few tenths of a GiB are a large part of 4 GiB.",
        "- The first start of a model compiles it. The compiler's trials then raise the peak of the"
        " dummy run: Qwen3 8B on a 4090 (0.27) had 1.0 GiB less cache than at its second start."
        " Half of that is planned, which agrees with the fitting half.",
        "- Kernels may need other blocks than vLLM's default (`--block-tokens`); with FlashKDA,"
        " Kimi Linear keeps a third state.",
        "- MXFP4 experts are padded as Marlin pads them; other kernels pad as much or less. Changes"
        " of size when other formats are loaded are not planned.",
        "- The memory that NVFP4 experts keep follows from vLLM's source. It is added to the peak"
        " of the encoder because of one log (Qwen3.6 35B on a 5090 under WSL).",
        "- A video is planned as vLLM measures it for Qwen2-VL and Qwen2.5-VL, and with 16,384"
        " tokens for other encoders. The flag `limit-mm-per-prompt` with 0 videos saves that"
        " memory. Larger images that `mm-processor-kwargs` allows are not planned.",
        "- Embedders and rerankers that read a text in both directions keep no cache; only"
        " their weights and their reserve are planned.",
        "- Not supported, and refused: DeepSeek V4 and other compressed caches, Qwen3.8 Flash"
        " Next, GLM 5.3 Flash, encoder-decoder models, separate drafting models, pipeline and"
        " context parallelism, GGUF.",
        "",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> None:
    """Print the claims about the judging half; with --write, also write docs/fit.md."""
    print(f"judging half, {_sentence(judged('judging'))}")  # noqa: T201
    if "--write" in arguments:
        PAGE.write_text(page())
        print(f"wrote {PAGE}", file=sys.stderr)  # noqa: T201


if __name__ == "__main__":
    main(["--write", *sys.argv[1:]])
