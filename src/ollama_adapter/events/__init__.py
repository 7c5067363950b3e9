"""The values we publish: what a caller, an orchestrator or a page is given.

Times are integers: `*_ns` on the monotonic clock, `*_ms` and `epoch_ms` in milliseconds.
No repr shows text or a number made of text: an event may end up in somebody's log.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

from ollama_adapter.events.frames import Frame, SessionFrame, State
from ollama_adapter.events.health import DaemonChange, Guarantee, Health, Standing
from ollama_adapter.events.pool import (
    Change,
    Eviction,
    Footprint,
    HostTraffic,
    LoadPhase,
    LoadPlan,
    LoadProgress,
    PullOffer,
    PullProgress,
    PullReceipt,
    PullStage,
    ResidencyChange,
    ResidentModel,
    Substitution,
)
from ollama_adapter.veiled import Veiled

__all__ = [
    "AbortReceipt",
    "Answer",
    "Candidate",
    "Change",
    "Channel",
    "DaemonChange",
    "Embeddings",
    "Eviction",
    "Finish",
    "Footprint",
    "Frame",
    "Guarantee",
    "Health",
    "HostTraffic",
    "LoadPhase",
    "LoadPlan",
    "LoadProgress",
    "Phase",
    "PullOffer",
    "PullProgress",
    "PullReceipt",
    "PullStage",
    "ResidencyChange",
    "ResidentModel",
    "Seam",
    "SessionFrame",
    "Source",
    "Standing",
    "State",
    "Statistics",
    "Substitution",
    "TokenEvent",
    "Way",
]


class Source(StrEnum):
    """Where a token comes from."""

    LIVE = "live"
    RESUMED = "resumed"
    REPLAYED = "replayed"
    SUBSTITUTED = "substituted"
    CACHED = "cached"


class Way(StrEnum):
    """How a stream that was interrupted goes on, the most exact way first (docs/streams.md)."""

    TOKENS = "tokens"  # from the ids of the tokens so far: the embedded daemon only
    RERUN = "rerun"  # the same request once more, compared, and only the rest delivered
    TEXT = "text"  # from the rendered prompt and the text so far
    ANEW = "anew"  # nothing had been delivered: the request is simply sent again


class Channel(StrEnum):
    """What a token is part of. The tokens of one channel concatenate to what the daemon sent."""

    TEXT = "text"
    THINKING = "thinking"
    TOOL_CALLS = "tool_calls"


class Finish(StrEnum):
    """How a session ended. STOP, LENGTH, LOAD and UNLOAD are the daemon's own words."""

    STOP = "stop"
    LENGTH = "length"
    LOAD = "load"
    UNLOAD = "unload"
    REPEAT = "repeat"  # the daemon's token-repeat guard: it ends the stream without a last record
    ABORTED = "aborted"  # somebody asked for it
    FAILED = "failed"  # an error, raised to the reader


class Phase(StrEnum):
    """How far a session had come when it was aborted."""

    NOT_STARTED = "not_started"  # nothing was sent
    LOADING = "loading"  # for the daemon, the model or the connection
    QUEUED = "queued"  # behind another session of ours on the same model
    PROMPT_EVALUATION = "prompt_evaluation"  # sent, and no token yet
    DECODING = "decoding"
    ENDED = "ended"


class Candidate(Veiled, msgspec.Struct, gc=False):
    """One of the most probable tokens at a position; `logprob` is natural, before temperature."""

    token: str
    logprob: float


@dataclass(slots=True)
class TokenEvent:
    """One token, as it arrived.

    `timestamp_ms` is epoch time: a fixed offset taken at process start plus the monotonic arrival, so it
    never goes backwards. `delta_ms` is the time since the session's previous token (0 for the first).
    `logprobs` are the top-K log probabilities, best first; `logprob` is that of the token chosen, which
    need not be among them. `energy` is E(t) in [0, 1] right after this token (docs/energy.md). `token_ids`
    are those of all tokens since the event before; None where they are not known.
    """

    token: str = field(repr=False)
    timestamp_ms: int
    delta_ms: int
    session_id: str
    model: str
    logprobs: list[float] | None = field(default=None, repr=False)
    energy: float | None = field(default=None, repr=False)
    index: int = 0
    source: Source = Source.LIVE
    channel: Channel = Channel.TEXT
    logprob: float | None = field(default=None, repr=False)
    candidates: list[Candidate] | None = field(default=None, repr=False)
    tool_calls: list[dict[str, Any]] | None = field(default=None, repr=False)
    arrival_ns: int = 0
    token_ids: tuple[int, ...] | None = field(default=None, repr=False)
    way: Way | None = None  # how the stream went on, since it was last interrupted


@dataclass(frozen=True, slots=True)
class Seam:
    """A place where a stream was interrupted and went on.

    `index` is that of the first event after it, `reason` why it was cut, `gap_ms` the time from the last
    token before to the first one after. `fidelity` in [0, 1] says how alike the model's log probabilities
    for the last token were, before and after (core.transcript.overlap); None without any. `exact`: the
    number of tokens so far was known, and hence how many may still come.
    """

    index: int
    way: Way
    reason: str
    gap_ms: float
    fidelity: float | None = field(default=None, repr=False)
    exact: bool = True


@dataclass(slots=True)
class Statistics:
    """The account of one session; complete once `finish` is set.

    `tps` is (n - 1) / (t_n - t_1) over delivered tokens; `eval_count` and the durations are the daemon's
    own figures, after a seam those of its last part. `tokens` and `eval_count` differ: a character of
    several tokens is one event. `cached_age_s` is the age of an answer that comes from memory. `queued_ms`
    is the wait for memory or a place to run, of ours; `substitution` says that another model answered, and
    `notes` what was changed of the request so that no model had to be loaded anew. `vram_share` in [0, 1]
    is how much of the model is on GPUs; None where the daemon has not said.
    """

    session_id: str
    model: str
    served_by: str = ""
    finish: Finish | None = None
    tokens: int = 0
    ttft_ms: float | None = None
    tps: float | None = None
    mean_energy: float | None = field(default=None, repr=False)
    prompt_eval_count: int = 0
    eval_count: int = 0
    load_duration_ns: int = 0
    prompt_eval_duration_ns: int = 0
    eval_duration_ns: int = 0
    total_duration_ns: int = 0
    empty_records: int = 0
    warm: bool | None = None
    degraded: tuple[str, ...] = ()  # what was asked for and this daemon did not give
    error: str = ""  # the kind of error that ended it, by its class name
    guarantees: tuple[Guarantee, ...] = ()
    seams: tuple[Seam, ...] = ()
    cached_age_s: float | None = None
    queued_ms: float = 0.0
    substitution: Substitution | None = None
    notes: tuple[str, ...] = ()
    vram_share: float | None = None


@dataclass(frozen=True, slots=True)
class AbortReceipt:
    """What an abort did, and whether the runner is known to be at rest (docs/streams.md).

    `close_ms` and `idle_ms` count from the call. `events_after` are events that came in after it, of
    which the reader got none. `reason` says why it is not `confirmed`, and which rung of the ladder was
    not climbed; `rungs` are those that were.
    """

    session_id: str
    phase: Phase
    close_ms: float = 0.0
    events_after: int = 0
    idle_ms: float | None = None
    confirmed: bool = False
    reason: str = ""
    rungs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: what the stream would have delivered, put together."""

    text: str = field(repr=False)
    thinking: str = field(repr=False)
    tool_calls: list[dict[str, Any]] = field(repr=False)
    statistics: Statistics


@dataclass(frozen=True, slots=True)
class Embeddings:
    """One vector per input, L2-normalised by the daemon."""

    model: str
    vectors: list[list[float]] = field(repr=False)
    prompt_eval_count: int = 0
