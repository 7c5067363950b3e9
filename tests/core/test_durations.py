"""Durations as Go writes them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.durations import FOREVER_NS, is_duration, is_seconds, keep_alive_ns

S = 1_000_000_000


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        *(("0", 0), ("300", 300 * S), ("1.5", 1_500_000_000), (".5", S // 2), ("5.", 5 * S)),
        *(("+5", 5 * S), ("-1", FOREVER_NS), ("-0", 0), ("5m", 300 * S), ("1h30m", 5400 * S)),
        *(("250ms", S // 4), ("1us", 1000), ("1µs", 1000), ("1μs", 1000), ("7ns", 7), ("0s", 0)),
        *(("1.5h", 5400 * S), (".5s", S // 2), ("1h1h", 7200 * S), ("+5m", 300 * S)),
        *(("-5m", FOREVER_NS), ("-1ns", FOREVER_NS), ("999999999h", FOREVER_NS)),
        (f"{'9' * 18}h", FOREVER_NS),
    ],
)
def test_a_duration_and_its_nanoseconds(text: str, ns: int) -> None:
    assert is_duration(text)
    assert keep_alive_ns(text) == ns


@pytest.mark.parametrize(
    "text",
    [
        *(
            "",
            " ",
            "abc",
            "5x",
            "m",
            "5 m",
            "5m ",
            "5m\n",
            "5\n",
            "5m3",
            "--5m",
            "5m-3s",
            "1e3",
            "1e3s",
        ),
        *(
            "nan",
            "inf",
            "-inf",
            ".",
            ".s",
            "5M",
            "1d",
            "0x5",
            "٥",
            "٥m",
            "5_0",
            "9" * 400,
            "9" * 400 + "s",
        ),
    ],
)
def test_what_go_does_not_take_is_no_duration(text: str) -> None:
    assert not is_duration(text)


@pytest.mark.parametrize(
    ("text", "plain"), [("5", True), ("5.5", True), ("-1", True), ("5s", False)]
)
def test_a_plain_number_is_told_from_a_duration(text: str, plain: bool) -> None:
    assert is_seconds(text) is plain


@given(st.one_of(st.integers(), st.floats(allow_nan=False, allow_infinity=False)))
def test_any_finite_number_of_seconds_has_nanoseconds_in_range(value: float) -> None:
    ns = keep_alive_ns(value)
    assert 0 <= ns <= FOREVER_NS
    assert (ns == FOREVER_NS) or value >= 0
    if 0 <= value < 1e6:
        assert abs(ns - value * S) <= 1


@pytest.mark.parametrize("value", [10**400, 1e308, -(10**400), -1e308, -1, -0.5])
def test_what_is_huge_or_negative_is_for_good(value: float) -> None:
    assert keep_alive_ns(value) == FOREVER_NS


@given(st.from_regex(r"[+-]?([0-9]{1,12}(\.[0-9]{0,6})?(ns|us|ms|s|m|h)){1,4}", fullmatch=True))
def test_every_duration_has_nanoseconds_in_range(text: str) -> None:
    assert is_duration(text)
    assert 0 <= keep_alive_ns(text) <= FOREVER_NS
