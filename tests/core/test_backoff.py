"""How long to wait before the next try."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.backoff import Backoff, BackoffPolicy

POLICY = BackoffPolicy(base_s=1.0, cap_s=10.0, tries=6, stable_s=30.0)
CHANCES = st.floats(0.0, 1.0, exclude_max=True)


def bounds(backoff: Backoff, failures: int) -> list[float]:
    """The largest delay after each failure."""
    found = []
    for _ in range(failures):
        backoff.failed()
        found.append(backoff.delay_s(1.0))
    return found


def test_the_bound_doubles_up_to_the_cap() -> None:
    assert bounds(Backoff(POLICY), 6) == [1.0, 2.0, 4.0, 8.0, 10.0, 10.0]


@given(st.integers(0, 10_000), CHANCES)
def test_the_delay_is_drawn_evenly_from_nothing_to_the_bound(failures: int, chance: float) -> None:
    backoff = Backoff(POLICY)
    backoff.failures = failures
    assert backoff.delay_s(0.0) == 0.0
    assert backoff.delay_s(chance) == chance * backoff.delay_s(1.0)
    assert 0.0 <= backoff.delay_s(chance) <= POLICY.cap_s


def test_it_is_exhausted_after_so_many_failures_in_a_row() -> None:
    backoff = Backoff(POLICY)
    for number in range(1, 7):
        assert not backoff.exhausted
        backoff.failed()
        assert backoff.failures == number
    assert backoff.exhausted
    assert repr(backoff) == "<Backoff 6 of 6>"
    backoff.reset()
    assert not backoff.exhausted


@given(st.integers(0, 20), st.floats(0.0, 100.0))
def test_a_stable_run_makes_up_for_what_failed_before(failures: int, ran_s: float) -> None:
    backoff = Backoff(POLICY)
    backoff.failures = failures
    backoff.failed(ran_s)
    assert backoff.failures == (1 if ran_s >= POLICY.stable_s else failures + 1)
