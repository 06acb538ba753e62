"""Published logs of vLLM's start, which the planner's estimates are fitted to and judged by.

`tests/unit/data/fit/logs.json` contains them. A hash of its name assigns each log to the fitting
half or the judging half; a log that was collected later always belongs to the judging half. No
estimate is fitted to the judging half.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, TypeAdapter

from holdfast.fit.planner import GIB, MIB, Card, EngineSettings, Fit, load, plan
from holdfast.fit.weights import Weights
from holdfast.types import Model

DATA = Path("tests/unit/data/fit")


class Parts(Model):
    """The parts of the reserve that the log names, GiB; None if it does not."""

    activation: float | None = None
    """Peak of the dummy run; since 0.20 including the estimate of the graphs."""
    non_torch: float | None = None
    """Memory of CUDA and NCCL."""
    graph_estimate: float | None = None
    """Memory reserved for CUDA graphs."""
    graphs: float | None = None
    """Memory that the graphs finally took."""


class Log(Model):
    """One published start of vLLM."""

    name: str
    model: str
    """The folder in tests/unit/data/fit with its config.json."""
    card: str
    usable_gib: float = Field(gt=0)
    """The card's memory as CUDA sees it: from this log, or from other logs with the same card."""
    source: str
    """Where it was published: an address, or the title of a public text."""
    quote: str
    """The line of the log with the figures."""
    engine: EngineSettings
    weights_gib: float | None = Field(gt=0)
    """Weights as loaded on one card; None if the log does not say."""
    cache_gib: float
    """Memory left for the cache on one card, from the log; negative if vLLM refused to start."""
    tokens: int | None = None
    """Tokens of the cache, from the log; they check that config.json is the right one."""
    refused: bool = False
    """Whether vLLM refused to start."""
    from_files: bool = False
    """Whether the planner counts the weights from the files; else it gets the loaded size."""
    assumed: tuple[str, ...] = ()
    """Settings that the log does not name; the planner uses the defaults of that version."""
    parts: Parts = Parts()
    later: bool = False
    """Whether it was collected after the estimates were fitted; then it belongs to the judging
    half."""
    note: str = ""

    @property
    def half(self) -> Literal["fitting", "judging"]:
        """The half of the log, from the first byte of a hash of its name; judging if ``later``."""
        if self.later:
            return "judging"
        return "judging" if hashlib.sha256(self.name.encode()).digest()[0] % 2 else "fitting"

    @property
    def budget_gib(self) -> float:
        """Memory of the card that vLLM may use."""
        return self.usable_gib * self.engine.utilisation


def load_logs(folder: Path = DATA) -> list[Log]:
    """The logs in ``folder``/logs.json.

    Raises:
        pydantic.ValidationError: the file does not have this form.
    """
    found = json.loads((folder / "logs.json").read_text())
    return TypeAdapter(list[Log]).validate_python(found, strict=False)


@dataclass(frozen=True)
class Judgement:
    """A log, and the plan for its card, settings and weights."""

    log: Log
    fit: Fit

    @property
    def cache_gib(self) -> float:
        """Memory that the plan computes for the cache, without the log's measurements."""
        return self.fit.cards[0].cache_bytes / GIB

    @property
    def error_percent(self) -> float:
        """Error of the planned cache, per cent of the budget; above 0 if it promises too much."""
        return 100 * (self.cache_gib - self.log.cache_gib) / self.log.budget_gib

    @property
    def is_false_fit(self) -> bool:
        """Whether the plan says that the model fits, but vLLM did not start."""
        return self.log.refused and self.fit.fits

    @property
    def is_false_refusal(self) -> bool:
        """Whether the plan says that the model does not fit, but vLLM started."""
        return not self.log.refused and not self.fit.fits


def judge(log: Log, folder: Path = DATA) -> Judgement:
    """Plan the start in ``log``, from its card, settings and weights only."""
    known = None
    cards = log.engine.tensor_parallel
    if log.weights_gib is not None and not log.from_files:
        known = Weights(total_bytes=int(log.weights_gib * GIB) * cards, are_loaded=True)
    usable = int(log.usable_gib * GIB / MIB)
    card = Card(name=log.card, total_mib=usable, usable_mib=usable)
    return Judgement(log, plan(load(folder / log.model, known), [card] * cards, log.engine))


def summary(found: Sequence[Judgement]) -> dict[str, float]:
    """The figures that are claimed for ``found``: counts, and errors in per cent of the budget."""
    errors = [each.error_percent for each in found]
    refusals = [-each.error_percent for each in found if each.is_false_refusal]
    return {
        "logs": len(found),
        "median": statistics.median(map(abs, errors)),
        "worst": max(map(abs, errors)),
        "beyond": sum(abs(error) > 5 for error in errors),
        "most promised too much": max(0, *errors),
        "false fits": sum(each.is_false_fit for each in found),
        "false refusals": len(refusals),
        "worst false refusal": max(refusals, default=0),
    }
