"""What was promised, what was measured, and the cause of a miss."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.guarantees import HANDLING_MS, judge
from ollama_adapter.events import Guarantee, Seam, Statistics, Way

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
    ("load_ms", "prompt_ms", "cause"),
    [
        (15_000, 2_000, "cold"),
        (1_000, 15_000, "prompt length"),
        (1_000, 1_000, "queued"),
        (0, 0, "queued"),
        (30_000, 0, "cold"),
    ],
)
def test_a_late_first_token_is_put_down_to_what_took_longest(
    load_ms: int, prompt_ms: int, cause: str
) -> None:
    statistics = session(
        ttft_ms=20_000.0,
        load_duration_ns=load_ms * MS,
        prompt_eval_duration_ns=prompt_ms * MS,
    )
    assert by_name(statistics)["ttft cold"].cause.startswith(cause)


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
