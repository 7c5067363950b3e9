"""Several sessions at once: their common energy, and how much two models disagree.

Both are in [0, 1]. What cannot be measured is missing (None), not guessed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import exp, log2
from typing import NamedTuple

from ollama_adapter.events import Candidate


def ensemble_energy(parts: Iterable[tuple[float, float]]) -> float:
    """The mean of (weight, energy) pairs; weights are finite and not negative. 0 without weight."""
    weights = weighted = 0.0
    for weight, energy in parts:
        weights += weight
        weighted += weight * energy
    return mean_energy(weighted, weights)


def mean_energy(weighted: float, weights: float) -> float:
    """The same from the sums of weight * energy and of the weights."""
    return min(max(weighted / weights, 0.0), 1.0) if weights > 0.0 else 0.0


class Position(NamedTuple):
    """What one model held possible at one place of the text.

    `tokenizer` identifies the vocabulary, `offset` counts the characters before this token.
    """

    tokenizer: str
    offset: int
    candidates: Sequence[Candidate]


def disagreement(first: Position, second: Position) -> float | None:
    """The Jensen-Shannon divergence of two models at the same position, in [0, 1] (bits).

    None where they do not compare: another tokenizer or place, no candidates, or one that is NaN.
    """
    if first[:2] != second[:2]:
        return None
    one, other = _outcomes(first.candidates), _outcomes(second.candidates)
    if one is None or other is None:
        return None
    return js_divergence(one, other)


def js_divergence(first: Mapping[str | None, float], second: Mapping[str | None, float]) -> float:
    """Of two distributions that sum to 1, in bits: 0 where they are equal, 1 where disjoint."""
    total = 0.0
    for outcome in first.keys() | second.keys():
        p, q = first.get(outcome, 0.0), second.get(outcome, 0.0)
        for each in (p, q):
            if each > 0.0:  # half of the smallest float is none, so the sum is not halved
                total += each * log2(2.0 * each / (p + q)) / 2
    return min(max(total, 0.0), 1.0)


def _outcomes(candidates: Sequence[Candidate]) -> dict[str | None, float] | None:
    """Probabilities that sum to 1; None, the outcome, stands for every token outside the list."""
    outcomes: dict[str | None, float] = {}
    for candidate in candidates:
        if not candidate.logprob <= 0.001:  # NaN too
            return None
        outcomes[candidate.token] = outcomes.get(candidate.token, 0.0) + exp(candidate.logprob)
    if not outcomes:
        return None
    mass = sum(outcomes.values())
    outcomes[None] = max(0.0, 1.0 - mass)
    return {outcome: p / max(mass, 1.0) for outcome, p in outcomes.items()}
