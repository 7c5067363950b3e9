"""Go's durations, as Ollama takes them for keep_alive: "5m", "1h30m", "250ms"; a number is seconds."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

FOREVER_NS: Final = 1 << 62
_UNITS_NS: Final = {
    "ns": 1,
    "us": 1_000,
    "µs": 1_000,
    "μs": 1_000,  # Go takes either letter
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}
_NUMBER: Final = r"(?:\d{1,18}(?:\.\d{0,18})?|\.\d{1,18})"
_TERM: Final = re.compile(rf"({_NUMBER})(ns|us|µs|μs|ms|s|m|h)", re.ASCII)
_DURATION: Final = re.compile(rf"[+-]?(?:{_TERM.pattern})+", re.ASCII)
_SECONDS: Final = re.compile(rf"[+-]?{_NUMBER}", re.ASCII)


def is_seconds(text: str) -> bool:
    """A plain number."""
    return _SECONDS.fullmatch(text) is not None


def is_duration(text: str) -> bool:
    """A plain number, or a Go duration."""
    return is_seconds(text) or _DURATION.fullmatch(text) is not None


@lru_cache(maxsize=256)
def keep_alive_ns(value: str | float) -> int:
    """Nanoseconds; FOREVER_NS for a negative one, which keeps a model for good."""
    if isinstance(value, str) and not is_seconds(value):
        terms = sum(float(number) * _UNITS_NS[unit] for number, unit in _TERM.findall(value))
        total = -terms if value.startswith("-") else terms
    else:
        total = (
            float(max(-1, min(float(value) if isinstance(value, str) else value, FOREVER_NS))) * 1e9
        )
    return FOREVER_NS if total < 0 or total > FOREVER_NS else int(total)
