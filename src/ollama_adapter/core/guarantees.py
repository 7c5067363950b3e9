"""What was promised of a session, whether it was kept, and how often it has been so far.

Time to the first token below 2 s warm and 10 s cold; below 16.67 ms (a frame) from a token's arrival to
its delivery; the throughput that the tier is expected to reach. A miss names its likeliest cause: cold,
queued, CPU fallback, prompt length, slow model. It is the largest part of the wait, by the daemon's own
figures and ours.
"""

from __future__ import annotations

from typing import Final

from ollama_adapter.config import Tier
from ollama_adapter.events import Guarantee, Standing, Statistics

TTFT_WARM_MS: Final = 2_000.0
TTFT_COLD_MS: Final = 10_000.0
HANDLING_MS: Final = 1000 / 60
TPS_FLOOR: Final = {Tier.LOW: 5.0, Tier.MID: 15.0, Tier.HIGH: 30.0}
SHORT_PROMPT: Final = 128
"""Tokens: where already so many would be too slow, it is not the prompt that is too long."""


class Tally:
    """Judges sessions, and counts the verdicts: what this adapter has kept of its promises so far.

    `tier` decides the throughput. `gpu`: the machine has one, so a model beside it is a fallback; one that
    has been further on a GPU than it is now is a fallback anywhere.
    """

    def __init__(self, tier: Tier, *, gpu: bool = False) -> None:
        self.tier = tier
        self.gpu = gpu
        self._counts: dict[str, list[int]] = {}
        self._latest: dict[str, Guarantee] = {}
        self._shares: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Tally {sum(missed for _, missed in self._counts.values())} missed>"

    def judge(self, statistics: Statistics, handling_ns: int) -> tuple[Guarantee, ...]:
        """The verdicts on a session that has ended, counted."""
        verdicts = judge(statistics, self.tier, handling_ns, fallback=self._fallback(statistics))
        for each in verdicts:
            if each.met is not None:
                self._counts.setdefault(each.name, [0, 0])[0 if each.met else 1] += 1
                self._latest[each.name] = each
        return verdicts

    @property
    def standings(self) -> tuple[Standing, ...]:
        """Every promise, and how it has been kept."""
        limits = (
            ("ttft warm", TTFT_WARM_MS, "ms"),
            ("ttft cold", TTFT_COLD_MS, "ms"),
            ("throughput", TPS_FLOOR[self.tier], "tokens/s"),
            ("handling", HANDLING_MS, "ms"),
        )
        return tuple(self._standing(*each) for each in limits)

    def _standing(self, name: str, limit: float, unit: str) -> Standing:
        met, missed = self._counts.get(name, (0, 0))
        return Standing(name, limit, unit, met, missed, self._latest.get(name))

    def _fallback(self, statistics: Statistics) -> str:
        """That less of the model is on the GPU than could be, in words; "" where that is not so."""
        share = statistics.vram_share
        if share is None:
            return ""
        best = self._shares.get(statistics.served_by, 0.0)
        self._shares[statistics.served_by] = max(best, share)
        if share >= 1 or not (self.gpu or share > 0 or share < best):
            return ""
        before = f", it was {best:.0%} before" if share < best else ""
        return f"CPU fallback: {share:.0%} of the model is on the GPU{before}"


def judge(
    statistics: Statistics, tier: Tier, handling_ns: int, *, fallback: str = ""
) -> tuple[Guarantee, ...]:
    """`handling_ns` is the longest that a token took from its arrival to a reader that waited for it."""
    held = bool(statistics.tokens) and handling_ns / 1e6 >= HANDLING_MS
    return (
        _ttft(statistics, fallback),
        _throughput(statistics, tier, fallback),
        Guarantee(
            "handling",
            not held if statistics.tokens else None,
            handling_ns / 1e6 if statistics.tokens else None,
            HANDLING_MS,
            "ms",
            "busy application: its event loop was held" if held else "",
        ),
    )


def _ttft(statistics: Statistics, fallback: str) -> Guarantee:
    measured = statistics.ttft_ms
    limit = TTFT_WARM_MS if statistics.warm else TTFT_COLD_MS
    name = "ttft warm" if statistics.warm else "ttft cold"
    met = None if measured is None else measured < limit
    cause = _slow(statistics, limit, fallback) if met is False else ""
    return Guarantee(name, met, measured, limit, "ms", cause)


def _slow(statistics: Statistics, limit: float, fallback: str) -> str:
    """The largest part of the wait. What nobody accounts for was the load, or queueing in the daemon."""
    prompt_ms = statistics.prompt_eval_duration_ns / 1e6
    parts = {
        "queued: others came first": statistics.queued_ms,
        "cold: the model had to be loaded": statistics.load_duration_ns / 1e6,
        _evaluation(statistics, limit, fallback): prompt_ms,
        fallback or "slow model: its first token took longest": 1e3 / (statistics.tps or 1e9),
    }
    rest = (statistics.ttft_ms or 0.0) - sum(parts.values())
    unaccounted = "queued: the daemon was busy"
    if statistics.warm is False:
        unaccounted = "cold: the model had to be loaded"
    parts[unaccounted] = parts.get(unaccounted, 0.0) + rest
    return max(parts, key=lambda each: parts[each])


def _evaluation(statistics: Statistics, limit: float, fallback: str) -> str:
    """Why the evaluation of a prompt took long."""
    tokens, ms = statistics.prompt_eval_count, statistics.prompt_eval_duration_ns / 1e6
    if tokens and ms / tokens * SHORT_PROMPT >= limit:
        rate = f"{tokens / ms * 1e3:.0f} tokens/s of a prompt"
        return f"{fallback}: {rate}" if fallback else f"slow model: it evaluates {rate}"
    return "prompt length: its evaluation took longest"


def _throughput(statistics: Statistics, tier: Tier, fallback: str) -> Guarantee:
    measured, floor = statistics.tps, TPS_FLOOR[tier]
    met = None if measured is None else measured >= floor
    cause = "" if met is not False else fallback or f"slow model for the tier {tier}"
    if cause and statistics.seams:
        cause = "the stream was interrupted, and went on"
    return Guarantee("throughput", met, measured, floor, "tokens/s", cause)
