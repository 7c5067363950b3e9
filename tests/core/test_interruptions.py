"""Answers that stop short: each way has its error, with the counts in it and nothing of the answer."""

from __future__ import annotations

import pytest

from ollama_adapter.core.interruptions import ended_early, too_late
from ollama_adapter.errors import Interruption, ProtocolError, ReadTimeout, StreamInterrupted
from ollama_adapter.events import Statistics


def account(tokens: int) -> Statistics:
    return Statistics("s", "m", tokens=tokens)


@pytest.mark.parametrize(
    ("tokens", "complete", "reason"),
    [
        (5, False, Interruption.CUT),
        (0, False, Interruption.CUT),
        (5, True, Interruption.NO_LAST_RECORD),
    ],
)
def test_a_response_that_ends_before_its_answer(
    tokens: int, complete: bool, reason: Interruption
) -> None:
    error = ended_early(account(tokens), "m", complete=complete, done=False)
    assert isinstance(error, StreamInterrupted)
    assert (error.reason, error.tokens, error.session_id) == (reason, tokens, "s")
    assert f"after {tokens} tokens" in str(error)
    assert error.hint


def test_a_whole_response_without_any_record_is_no_answer_of_ollama() -> None:
    assert isinstance(ended_early(account(0), "m", complete=True, done=False), ProtocolError)
    assert isinstance(ended_early(account(0), "m", complete=True, done=True), StreamInterrupted)


def test_a_silence_names_its_limit() -> None:
    first = too_late(account(0), "first", 2.0, ": the daemon does not answer")
    assert isinstance(first, ReadTimeout)
    assert str(first) == "no first token within 2 s: the daemon does not answer"
    assert "stream.first_token_s" in first.hint
    following = too_late(account(3), "next", 2.0, "")
    assert isinstance(following, StreamInterrupted)
    assert (following.reason, following.tokens) == (Interruption.STALLED, 3)
    assert "stream.next_token_s" in following.hint
