"""The published logs that the estimated reserve is fitted to and judged by."""

from __future__ import annotations

import pytest

from holdfast.fit import Card, cases, load, plan
from holdfast.fit.logs import DATA, Judgement, Log, judge, load_logs, summary
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


JUDGED = [judge(log) for log in LOGS]


@pytest.mark.parametrize("each", JUDGED, ids=lambda each: each.log.name)
def test_no_verdict_is_false(each: Judgement) -> None:
    assert not each.is_false_fit
    assert not each.is_false_refusal or each.error_percent > -5


@pytest.mark.parametrize("each", JUDGED, ids=lambda each: each.log.name)
def test_the_cache_is_promised_within_a_twentieth_of_the_budget(each: Judgement) -> None:
    assert -5 <= each.error_percent <= 2


def test_what_is_claimed_is_the_judging_halfs() -> None:
    judging = [each for each in JUDGED if each.log.half == "judging"]
    assert cases.judged("judging") == judging
    claimed = summary(judging)
    assert claimed["logs"] == len(judging)
    assert claimed["median"] <= 2
    assert claimed["beyond"] == 0
    assert claimed["worst false refusal"] < 5
    assert sum(each.log.refused for each in judging) >= 5


def test_what_was_collected_later_only_judges() -> None:
    later = [log for log in LOGS if log.later]
    assert {log.half for log in later} == {"judging"}
    by_hash = {log.model_copy(update={"later": False}).half for log in later}
    assert "fitting" in by_hash


def test_a_verdict_is_false_one_way_or_the_other() -> None:
    started = next(each.log for each in JUDGED if not each.log.refused)
    tight = {"max_model_len": 10_000_000}
    cannot = judge(started.model_copy(update={"engine": started.engine.model_copy(update=tight)}))
    assert (cannot.is_false_fit, cannot.is_false_refusal) == (False, True)
    could = judge(started.model_copy(update={"refused": True}))
    assert (could.is_false_fit, could.is_false_refusal) == (True, False)
    assert summary([could, cannot])["false fits"] == 1
    assert summary([could, cannot])["false refusals"] == 1


def test_the_command_prints_what_the_judging_half_says(capsys: pytest.CaptureFixture[str]) -> None:
    cases.main([])
    said = capsys.readouterr().out
    assert "32 logs: median error" in said
    assert "beyond 5 %" in said
