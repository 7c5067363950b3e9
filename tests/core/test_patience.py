"""A slow reader is waited for; one that is gone is not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.patience import Patience
from ollama_adapter.errors import ReaderGone

S = 1_000_000_000


def test_a_reader_that_takes_nothing_for_the_limit_is_gone() -> None:
    patience = Patience(100.0, "s")
    patience.check(8, 50 * S)
    patience.check(8, 150 * S - 1)
    with pytest.raises(ReaderGone, match="100 s") as gone:
        patience.check(8, 150 * S)
    assert gone.value.session_id == "s"
    assert "reader_s" in gone.value.hint


def test_a_reader_that_takes_a_token_now_and_then_is_waited_for() -> None:
    patience = Patience(100.0)
    for step in range(900):
        patience.check(900 - step, step * 99 * S)


def test_after_a_pause_the_count_begins_anew() -> None:
    patience = Patience(100.0)
    patience.check(8, 0)
    patience.reset()
    patience.check(8, 1_000 * S)
    with pytest.raises(ReaderGone):
        patience.check(8, 1_100 * S)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1 << 62))))
def test_without_a_limit_nobody_is_ever_gone(looks: list[tuple[int, int]]) -> None:
    patience = Patience(0.0)
    for waiting, now_ns in looks:
        patience.check(waiting, now_ns)
