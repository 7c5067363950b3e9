"""What the 60 Hz pipeline publishes: frames, and the state of each session in them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec


class State(StrEnum):
    """The energy state of a session (docs/energy.md)."""

    IDLE = "idle"
    CHARGING = "charging"
    FLOWING = "flowing"
    SATURATED = "saturated"
    STALLING = "stalling"
    DRAINED = "drained"

    __hash__ = str.__hash__  # that of Enum is no C, and frames look states up


class SessionFrame(msgspec.Struct, frozen=True, gc=False):
    """One session at one tick: `first`..`last` are the indices of its tokens in this frame (None: none).

    A struct, as Frame is, for one is made per session and tick: a frozen dataclass takes ten times as long.
    Nothing in it can refer to it, so Python's collector need not know of it.
    """

    energy: float
    state: State
    tokens: int = 0
    first: int | None = None
    last: int | None = None


class Frame(msgspec.Struct, frozen=True):
    """The snapshot of one 60 Hz tick. Summing frames gives the stream back. It never carries text.

    `energy_generated` and `total_energy` are in EU (the sum of E over tokens); `energy_rate` is EU/s,
    exponentially averaged over 1 s. `tokens_merged` counts the tokens beyond the first of each session
    in this frame; `skipped` counts ticks missed since the frame before; `processing_ns` is what making
    this frame took.
    """

    frame_id: int
    monotonic_ns: int
    epoch_ms: int
    new_tokens: int
    energy_generated: float
    total_energy: float
    energy_rate: float
    energy: float
    state: State
    sessions: Mapping[str, SessionFrame]
    queue_depth: int = 0
    tokens_merged: int = 0
    skipped: int = 0
    processing_ns: int = 0
