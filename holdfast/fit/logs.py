"""Published logs of vLLM's start, for the memory that the planner can only estimate.

`tests/unit/data/fit/logs.json` holds them. What a log says is data; a hash of its name says whether
the estimates may be fitted to it, or only judged by it; what came later only judges. No estimate
is fitted to the judging half.
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
    """What the log itself splits the reserve into, GiB; None where it does not say."""

    activation: float | None = None
    """Peak of the dummy run; since 0.20 with the estimate of the graphs."""
    non_torch: float | None = None
    """What CUDA and NCCL hold."""
    graph_estimate: float | None = None
    """What is kept back for CUDA graphs."""
    graphs: float | None = None
    """What the graphs took in the end."""


class Log(Model):
    """One start of vLLM as it was published."""

    name: str
    model: str
    """The folder in tests/unit/data/fit with its config.json."""
    card: str
    usable_gib: float = Field(gt=0)
    """The card's memory as CUDA sees it: from the log, or of cards of that name in other logs."""
    source: str
    """Where it was published: an address, or the title of a public text."""
    quote: str
    """The line of the log that the figures are from."""
    engine: EngineSettings
    weights_gib: float | None = Field(gt=0)
    """Weights as loaded on one card; None where the log does not say."""
    cache_gib: float
    """Memory left for the cache on one card, by the log; negative where vLLM refused."""
    tokens: int | None = None
    """Tokens of the cache, by the log: a check that config.json is the right one."""
    refused: bool = False
    """vLLM did not start."""
    from_files: bool = False
    """The planner counts the weights from the files; else it is given what was loaded."""
    assumed: tuple[str, ...] = ()
    """Settings that the log does not name, at the defaults of that version."""
    parts: Parts = Parts()
    later: bool = False
    """Collected when the estimates were already fitted: it can only judge."""
    note: str = ""

    @property
    def half(self) -> Literal["fitting", "judging"]:
        """Which half the log belongs to: by the first byte of a hash of its name, unless later."""
        if self.later:
            return "judging"
        return "judging" if hashlib.sha256(self.name.encode()).digest()[0] % 2 else "fitting"

    @property
    def budget_gib(self) -> float:
        """What vLLM may use of the card."""
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
    """A log beside what the planner makes of its card, settings and weights."""

    log: Log
    fit: Fit

    @property
    def cache_gib(self) -> float:
        """Memory for the cache by the plan, before anything is known of the start."""
        return self.fit.cards[0].cache_bytes / GIB

    @property
    def error_percent(self) -> float:
        """Cache promised too much (more than 0) or too little, in per cent of the budget."""
        return 100 * (self.cache_gib - self.log.cache_gib) / self.log.budget_gib

    @property
    def is_false_fit(self) -> bool:
        """The plan says it fits, and vLLM did not start."""
        return self.log.refused and self.fit.fits

    @property
    def is_false_refusal(self) -> bool:
        """The plan says it does not fit, and vLLM started; by no more than the error."""
        return not self.log.refused and not self.fit.fits


def judge(log: Log, folder: Path = DATA) -> Judgement:
    """What the planner makes of ``log``: nothing of it but card, settings and weights is used."""
    known = None
    cards = log.engine.tensor_parallel
    if log.weights_gib is not None and not log.from_files:
        known = Weights(total_bytes=int(log.weights_gib * GIB) * cards, are_loaded=True)
    usable = int(log.usable_gib * GIB / MIB)
    card = Card(name=log.card, total_mib=usable, usable_mib=usable)
    return Judgement(log, plan(load(folder / log.model, known), [card] * cards, log.engine))


def summary(found: Sequence[Judgement]) -> dict[str, float]:
    """What is claimed of ``found``: counts, and errors in per cent of the budget."""
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
