"""One stream of tokens: its limits, its aborts, its ways on, what is kept of it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from enum import StrEnum

from ollama_adapter.conversion import not_negative, positive, typed


class Rung(StrEnum):
    """What may be done to a runner that does not come to rest after an abort (docs/streams.md).

    UNLOAD asks the daemon to unload the model; RESTART ends the process that runs it, which a daemon of
    ours starts anew for the next request.
    """

    UNLOAD = "unload"
    RESTART = "restart"


@dataclass(frozen=True, slots=True)
class StreamConfig:
    connect_s: float = 5.0
    """Limit for the connection."""
    first_token_s: float = 600.0
    """Limit from the request to its first token: load and prompt evaluation send no bytes."""
    next_token_s: float = 120.0
    """Limit between two tokens."""
    buffer_tokens: int = 256
    """How many tokens may wait for a slow reader before the daemon is made to wait."""
    buffer_bytes: int = 1 << 20
    """The same, in characters of text."""
    reader_s: float = 300.0
    """How long the daemon is made to wait for a reader that has stopped reading; 0: for ever."""
    abort_s: float = 10.0
    """How long an abort, and each rung of its ladder, waits for the runner to come to rest."""
    abort_ladder: tuple[Rung, ...] = ()
    """What is done, in this order, while the runner does not come to rest."""
    resume_tries: int = 3
    """How often one answer may go on after an interruption; 0: it ends at the first one."""
    resume_s: float = 60.0
    """Limit from an interruption until it goes on: a daemon and a model may have to start meanwhile."""
    resume_tokens: int = 2048
    """The longest part of an answer that is computed once more in order to go on."""
    cache_bytes: int = 16 << 20
    """Memory for whole answers, given again when no daemon can be had; 0: none is kept."""
    cache_s: float = 3600.0
    """How old such an answer may be."""

    def __post_init__(self) -> None:
        typed(self)
        may_be_zero = ("reader_s", "resume_tries", "resume_tokens", "cache_bytes")
        names = [each.name for each in dataclasses.fields(self) if each.name != "abort_ladder"]
        positive(self, *(each for each in names if each not in may_be_zero))
        not_negative(self, *may_be_zero)
