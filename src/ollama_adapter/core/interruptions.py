"""What to call the ways in which an answer stops short: errors made of counts and names, never of text."""

from __future__ import annotations

from ollama_adapter.errors import (
    AdapterError,
    Interruption,
    ProtocolError,
    ReadTimeout,
    StreamInterrupted,
)
from ollama_adapter.events import Statistics


def ended_early(statistics: Statistics, model: str, *, complete: bool, done: bool) -> AdapterError:
    """The response is over and the answer is not. `complete`: the response came whole."""
    tokens = statistics.tokens
    if not tokens and complete and not done:
        return ProtocolError(
            "the daemon's answer holds no record",
            hint="something else may listen on the daemon's port",
        )
    if complete:
        how, reason = "ended without its last record", Interruption.NO_LAST_RECORD
    else:
        how, reason = "was cut", Interruption.CUT
    return StreamInterrupted(
        f"the answer of {model} {how} after {tokens} tokens",
        session_id=statistics.session_id,
        tokens=tokens,
        reason=reason,
        hint="what came before is whole; ask again for the rest",
    )


def another_answer(statistics: Statistics) -> StreamInterrupted:
    """The answer that was to go on from what had been delivered is not the same one."""
    return StreamInterrupted(
        f"the answer that should have gone on after {statistics.tokens} tokens is another one",
        session_id=statistics.session_id,
        tokens=statistics.tokens,
        reason=Interruption.DIVERGED,
        hint="what came before is whole; ask again for the rest",
    )


def too_late(statistics: Statistics, what: str, limit_s: float, cause: str) -> AdapterError:
    """No token within the limit: the "first" one, or the "next". `cause`: what was found out about it."""
    message = f"no {what} token within {limit_s:g} s{cause}"
    hint = f"stream.{what}_token_s is the limit, and can be raised"
    if what == "first":
        return ReadTimeout(message, hint=hint)
    return StreamInterrupted(
        message,
        session_id=statistics.session_id,
        tokens=statistics.tokens,
        reason=Interruption.STALLED,
        hint=hint,
    )
