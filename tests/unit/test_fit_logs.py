"""The published logs that the estimated reserve is fitted to and judged by."""

from __future__ import annotations

import pytest

from holdfast.fit import Card, load, plan
from holdfast.fit.logs import DATA, Log, load_logs
from holdfast.fit.planner import GIB, MIB
from holdfast.fit.weights import Weights

LOGS = load_logs()


def test_there_are_forty_logs_in_two_halves() -> None:
    assert len(LOGS) >= 40
    assert len({log.name for log in LOGS}) == len({log.quote for log in LOGS}) == len(LOGS)
    halves = [log.half for log in LOGS]
    assert min(halves.count("fitting"), halves.count("judging")) >= 15


@pytest.mark.parametrize("log", [log for log in LOGS if log.tokens], ids=lambda log: log.name)
def test_the_configuration_is_the_logs(log: Log) -> None:
    """From the memory that was logged the planner must find the tokens that were logged."""
    engine = log.engine.model_copy(update={"kv_cache_mib": log.cache_gib * GIB / MIB})
    cards = [Card(total_mib=int(log.usable_gib * 1024))] * engine.tensor_parallel
    fit = plan(load(DATA / log.model, Weights(total_bytes=1)), cards, engine)
    assert fit.cache_tokens == pytest.approx(log.tokens, rel=0.005)
