"""What was promised of a session, and whether it was kept.

Time to the first token below 2 s warm and 10 s cold; below 16.67 ms (a frame) from a token's arrival to
its delivery; the throughput that the tier is expected to reach. A miss names its likeliest cause.
"""

from __future__ import annotations

from typing import Final

from ollama_adapter.config import Tier
from ollama_adapter.events import Guarantee, Statistics

TTFT_WARM_MS: Final = 2_000.0
TTFT_COLD_MS: Final = 10_000.0
HANDLING_MS: Final = 1000 / 60
TPS_FLOOR: Final = {Tier.LOW: 5.0, Tier.MID: 15.0, Tier.HIGH: 30.0}


def judge(statistics: Statistics, tier: Tier, handling_ns: int) -> tuple[Guarantee, ...]:
    """`handling_ns` is the longest that a token took from its arrival to a reader that waited for it."""
    held = bool(statistics.tokens) and handling_ns / 1e6 >= HANDLING_MS
    return (
        _ttft(statistics),
        _throughput(statistics, tier),
        Guarantee(
            "handling",
            not held if statistics.tokens else None,
            handling_ns / 1e6 if statistics.tokens else None,
            HANDLING_MS,
            "ms",
            "busy application: its event loop was held" if held else "",
        ),
    )


def _ttft(statistics: Statistics) -> Guarantee:
    measured = statistics.ttft_ms
    limit = TTFT_WARM_MS if statistics.warm else TTFT_COLD_MS
    name = "ttft warm" if statistics.warm else "ttft cold"
    met = None if measured is None else measured < limit
    return Guarantee(
        name, met, measured, limit, "ms", "" if met is not False else _slow(statistics)
    )


def _slow(statistics: Statistics) -> str:
    """The largest part of the wait, by the daemon's own figures; what they leave out was queueing."""
    waited = int((statistics.ttft_ms or 0.0) * 1e6)
    parts = {
        "cold: the model had to be loaded": statistics.load_duration_ns,
        "prompt length: its evaluation took longest": statistics.prompt_eval_duration_ns,
    }
    parts["queued: the daemon was busy"] = waited - sum(parts.values())
    return max(parts, key=lambda each: parts[each])


def _throughput(statistics: Statistics, tier: Tier) -> Guarantee:
    measured, floor = statistics.tps, TPS_FLOOR[tier]
    met = None if measured is None else measured >= floor
    cause = "" if met is not False else f"slow model for the tier {tier}"
    if cause and statistics.seams:
        cause = "the stream was interrupted, and went on"
    return Guarantee("throughput", met, measured, floor, "tokens/s", cause)
