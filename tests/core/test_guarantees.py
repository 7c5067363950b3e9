"""What was promised, what was measured, and the cause of a miss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.guarantees import HANDLING_MS, Tally, judge
from ollama_adapter.events import Guarantee, Seam, Standing, Statistics, Way

MS = 1_000_000
FRAME_NS = 16_666_666


def session(**fields: object) -> Statistics:
    statistics = Statistics("s", "m")
    for name, value in fields.items():
        setattr(statistics, name, value)
    return statistics


def by_name(
    statistics: Statistics, tier: Tier = Tier.MID, handling_ns: int = 0
) -> dict[str, Guarantee]:
    return {each.name: each for each in judge(statistics, tier, handling_ns)}


@pytest.mark.parametrize(
    ("warm", "ttft_ms", "name", "met"),
    [
        (True, 1_999.9, "ttft warm", True),
        (True, 2_000.0, "ttft warm", False),
        (False, 2_000.0, "ttft cold", True),
        (False, 9_999.9, "ttft cold", True),
        (False, 10_000.0, "ttft cold", False),
        (None, 5_000.0, "ttft cold", True),
        (True, None, "ttft warm", None),
        (None, None, "ttft cold", None),
    ],
)
def test_the_first_token(
    warm: bool | None, ttft_ms: float | None, name: str, met: bool | None
) -> None:
    verdict = by_name(session(warm=warm, ttft_ms=ttft_ms))[name]
    assert (verdict.met, verdict.measured, verdict.unit) == (met, ttft_ms, "ms")
    assert verdict.limit == (2_000.0 if warm else 10_000.0)
    assert bool(verdict.cause) is (met is False)


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"load_duration_ns": 15_000 * MS, "prompt_eval_duration_ns": 2_000 * MS}, "cold"),
        ({"load_duration_ns": 30_000 * MS}, "cold"),
        ({"warm": False, "prompt_eval_duration_ns": 2_000 * MS}, "cold"),
        ({"prompt_eval_duration_ns": 15_000 * MS}, "prompt length"),
        ({"prompt_eval_duration_ns": 15_000 * MS, "prompt_eval_count": 9_000}, "prompt length"),
        ({"prompt_eval_duration_ns": 15_000 * MS, "prompt_eval_count": 100}, "slow model: it eval"),
        ({"load_duration_ns": MS, "prompt_eval_duration_ns": MS}, "queued: the daemon"),
        ({}, "queued: the daemon"),
        ({"queued_ms": 15_000.0}, "queued: others"),
        ({"queued_ms": 6_000.0, "warm": False}, "cold"),
        ({"tps": 1 / 15}, "slow model: its first token"),
    ],
)
def test_a_late_first_token_is_put_down_to_what_took_longest(
    fields: dict[str, object], cause: str
) -> None:
    verdicts = by_name(session(ttft_ms=20_000.0, **fields))
    assert verdicts["ttft cold"].cause.startswith(cause)


def test_a_slow_evaluation_says_how_slow() -> None:
    slow = session(ttft_ms=9e4, prompt_eval_duration_ns=80_000 * MS, prompt_eval_count=400)
    (verdict, *_) = judge(slow, Tier.MID, 0)
    assert verdict.cause == "slow model: it evaluates 5 tokens/s of a prompt"
    (verdict, *_) = judge(slow, Tier.MID, 0, fallback="CPU fallback: 10% of it")
    assert verdict.cause == "CPU fallback: 10% of it: 5 tokens/s of a prompt"


@pytest.mark.parametrize(("tier", "floor"), [(Tier.LOW, 5.0), (Tier.MID, 15.0), (Tier.HIGH, 30.0)])
def test_the_throughput_of_a_tier(tier: Tier, floor: float) -> None:
    for tps, met in ((floor, True), (floor - 0.01, False), (None, None)):
        verdict = by_name(session(tps=tps), tier)["throughput"]
        assert (verdict.met, verdict.measured, verdict.limit) == (met, tps, floor)
        assert verdict.cause == (f"slow model for the tier {tier}" if met is False else "")


def test_the_pause_of_an_interruption_is_no_slow_model() -> None:
    seams = (Seam(3, Way.TEXT, "it was cut", 900.0),)
    assert "interrupted" in by_name(session(tps=1.0, seams=seams))["throughput"].cause


@pytest.mark.parametrize(
    ("tokens", "handling_ns", "met"),
    [(1, FRAME_NS, True), (1, FRAME_NS + 1, False), (0, 0, None), (0, 10 * FRAME_NS, None)],
)
def test_our_own_handling_takes_less_than_a_frame(
    tokens: int, handling_ns: int, met: bool | None
) -> None:
    verdict = by_name(session(tokens=tokens), handling_ns=handling_ns)["handling"]
    assert verdict.limit == HANDLING_MS
    assert verdict.met is met
    assert bool(verdict.cause) is (met is False)


measured = st.none() | st.floats(0, 1e6)


@given(measured, measured, st.booleans() | st.none(), st.integers(0, 5), st.integers(0, 10**9))
def test_a_verdict_has_a_cause_exactly_when_it_is_a_miss(
    ttft_ms: float | None, tps: float | None, warm: bool | None, tokens: int, handling_ns: int
) -> None:
    statistics = session(ttft_ms=ttft_ms, tps=tps, warm=warm, tokens=tokens)
    for verdict in judge(statistics, Tier.MID, handling_ns):
        assert bool(verdict.cause) is (verdict.met is False)
        assert (verdict.met is None) is (verdict.measured is None)


# The tally


def throughput_cause(tally: Tally, model: str, share: float | None, **fields: object) -> str:
    statistics = session(served_by=model, vram_share=share, tokens=9, tps=0.5, **fields)
    return {each.name: each.cause for each in tally.judge(statistics, 0)}["throughput"]


@pytest.mark.parametrize(
    ("gpu", "share", "cause"),
    [
        (True, 0.0, "CPU fallback: 0% of the model is on the GPU"),
        (True, 0.4, "CPU fallback: 40% of the model is on the GPU"),
        (False, 0.4, "CPU fallback: 40% of the model is on the GPU"),  # so there is one
        (False, 0.0, "slow model for the tier low"),
        (True, 1.0, "slow model for the tier low"),
        (True, None, "slow model for the tier low"),
    ],
)
def test_a_model_beside_the_gpu(gpu: bool, share: float | None, cause: str) -> None:
    assert throughput_cause(Tally(Tier.LOW, gpu=gpu), "m", share) == cause


def test_a_model_that_has_left_the_gpu() -> None:
    tally = Tally(Tier.LOW)
    assert throughput_cause(tally, "m", 1.0).startswith("slow model")
    fallen = "CPU fallback: 0% of the model is on the GPU, it was 100% before"
    assert throughput_cause(tally, "m", 0.0) == fallen
    assert throughput_cause(tally, "m", 0.0) == fallen
    assert throughput_cause(tally, "other", 0.0).startswith("slow model")
    seams = (Seam(3, Way.TEXT, "it was cut", 900.0),)
    assert "interrupted" in throughput_cause(tally, "m", 0.0, seams=seams)


def test_verdicts_are_counted_and_the_latest_is_kept() -> None:
    tally = Tally(Tier.MID)
    untouched = tally.standings
    assert [(each.name, each.limit, each.unit) for each in untouched] == [
        ("ttft warm", 2_000.0, "ms"),
        ("ttft cold", 10_000.0, "ms"),
        ("throughput", 15.0, "tokens/s"),
        ("handling", HANDLING_MS, "ms"),
    ]
    assert all((each.met, each.missed, each.latest) == (0, 0, None) for each in untouched)
    tally.judge(session(warm=True, ttft_ms=100.0, tokens=5, tps=20.0), 0)
    *_, last = (
        tally.judge(session(warm=True, ttft_ms=each, tokens=5, tps=2.0), 0) for each in (90.0, 3e3)
    )
    tally.judge(session(), 0)  # nothing was measured
    standings = {each.name: each for each in tally.standings}
    assert standings["ttft warm"] == Standing("ttft warm", 2_000.0, "ms", 2, 1, last[0])
    assert standings["throughput"] == Standing("throughput", 15.0, "tokens/s", 1, 2, last[1])
    assert (standings["ttft cold"].met, standings["handling"].met) == (0, 3)
    tally.tier = Tier.HIGH
    assert {each.name: each.limit for each in tally.standings}["throughput"] == 30.0
    assert repr(tally) == "<Tally 3 missed>"
