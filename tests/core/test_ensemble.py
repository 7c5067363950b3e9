"""The ensemble's energy, and disagreement: in [0, 1], symmetric, by hand, and missing where it must be."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_adapter.core.ensemble import Position, disagreement, ensemble_energy, js_divergence
from ollama_adapter.events import Candidate

NAN, INF = math.nan, math.inf
weights = st.floats(0.0, 1e6)
energies = st.floats(0.0, 1.0)


def position(*candidates: tuple[str, float], tokenizer: str = "a", offset: int = 7) -> Position:
    """From tokens and probabilities."""
    return Position(
        tokenizer, offset, [Candidate(token, math.log(p) if p else -INF) for token, p in candidates]
    )


@given(st.lists(st.tuples(weights, energies), max_size=8))
def test_ensemble_energy_is_between_the_least_and_the_greatest(
    parts: list[tuple[float, float]],
) -> None:
    energy = ensemble_energy(parts)
    assert 0.0 <= energy <= 1.0
    if sum(weight for weight, _ in parts) > 1e-300:
        heavy = [each for weight, each in parts if weight > 0.0]
        assert min(heavy) - 1e-12 <= energy <= max(heavy) + 1e-12  # the sums round


@given(energies)
def test_the_energy_of_one_session_is_its_own(energy: float) -> None:
    assert ensemble_energy([(1.0, energy)]) == energy


@pytest.mark.parametrize(
    ("parts", "energy"),
    [
        ([], 0.0),
        ([(0.0, 0.9), (0.0, 0.5)], 0.0),
        ([(1.0, 0.25), (1.0, 0.75)], 0.5),
        ([(3.0, 1.0), (1.0, 0.0)], 0.75),
        ([(0.0, 1.0), (2.0, 0.5)], 0.5),
    ],
)
def test_ensemble_energy_by_hand(parts: list[tuple[float, float]], energy: float) -> None:
    assert ensemble_energy(parts) == energy


distributions = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.floats(0.0, 1.0), min_size=1
).filter(lambda each: sum(each.values()) > 1e-3)


@given(distributions, distributions)
@example({"a": 1.0}, {"a": 1.0, "b": 5e-324})  # the smallest float, of a log probability of -745
def test_divergence_is_symmetric_within_0_and_1_and_0_for_equals(
    one: dict[str | None, float], other: dict[str | None, float]
) -> None:
    p = {key: value / sum(one.values()) for key, value in one.items()}
    q = {key: value / sum(other.values()) for key, value in other.items()}
    found = js_divergence(p, q)
    assert 0.0 <= found <= 1.0
    assert found == pytest.approx(js_divergence(q, p), abs=1e-12)
    assert js_divergence(p, p) == 0.0


odd = st.one_of(st.floats(-20.0, 0.0), st.sampled_from([NAN, INF, -INF, 0.0, 0.001, 0.01]))
candidates = st.lists(st.builds(Candidate, st.sampled_from(["a", "b", "c"]), odd), max_size=4)


@given(candidates, candidates)
def test_disagreement_is_missing_or_within_0_and_1(
    one: list[Candidate], other: list[Candidate]
) -> None:
    found = disagreement(Position("t", 0, one), Position("t", 0, other))
    usable = all(
        each and all(candidate.logprob <= 0.001 for candidate in each) for each in (one, other)
    )
    assert (found is not None) == usable
    assert found is None or 0.0 <= found <= 1.0


@pytest.mark.parametrize(
    ("one", "other", "bits"),
    [
        (position(("x", 1.0)), position(("x", 1.0)), 0.0),
        (position(("x", 1.0)), position(("y", 1.0)), 1.0),
        (position(("x", 1.0)), position(("x", 0.5), ("y", 0.5)), 0.3112781245),
        # what is missing is an outcome of its own, the same for both
        (position(("x", 0.5)), position(("y", 0.5)), 0.5),
        (position(("x", 0.5)), position(("x", 0.25)), 0.0487949407),
        (position(("x", 0.25)), position(("x", 0.25)), 0.0),
        # duplicates add up, and what sums to more than 1 is cut to it
        (position(("x", 0.25), ("x", 0.25)), position(("x", 0.5)), 0.0),
        (position(("x", 1.0), ("x", 1.0)), position(("x", 1.0)), 0.0),
        (position(("x", 0.0)), position(("y", 0.0)), 0.0),
        (position(("x", 1.0), ("y", 1.0)), position(("x", 0.5), ("y", 0.5)), 0.0),
    ],
)
def test_disagreement_by_hand(one: Position, other: Position, bits: float) -> None:
    assert disagreement(one, other) == pytest.approx(bits, abs=1e-9)
    assert disagreement(other, one) == pytest.approx(bits, abs=1e-9)


@pytest.mark.parametrize(
    "other",
    [
        position(("x", 1.0), tokenizer="b"),
        position(("x", 1.0), offset=8),
        position(),
        Position("a", 7, [Candidate("x", NAN)]),
        Position("a", 7, [Candidate("x", -0.1), Candidate("y", 0.0011)]),
    ],
)
def test_what_does_not_compare_is_missing(other: Position) -> None:
    one = position(("x", 1.0))
    assert disagreement(one, other) is None
    assert disagreement(other, one) is None
