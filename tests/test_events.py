"""What we publish: the contract's fields in their order, and nothing said in a repr."""

from __future__ import annotations

import dataclasses
import pprint
import traceback
from typing import Any

import pytest
from rich.pretty import pretty_repr

from ollama_adapter.core.cache import Cached, CachedToken
from ollama_adapter.core.records import (
    ChatRecord,
    DebugInfo,
    GenerateRecord,
    LogprobEntry,
    Message,
)
from ollama_adapter.core.requests import Request
from ollama_adapter.core.resuming import Asked
from ollama_adapter.events import (
    Answer,
    Candidate,
    Channel,
    Embeddings,
    Finish,
    Frame,
    Guarantee,
    Health,
    SessionFrame,
    Source,
    State,
    Statistics,
    TokenEvent,
)
from ollama_adapter.system.fetching import Response
from ollama_adapter.system.running import Exit

SECRET = "SECRET"
NUMBER = -0.8125
REQUEST = Request("/api/generate", "model", SECRET.encode(), "5m", {"stop": SECRET})


def event() -> TokenEvent:
    return TokenEvent(
        SECRET,
        1,
        2,
        "session",
        "model",
        [NUMBER],
        0.8125,
        candidates=[Candidate(SECRET, NUMBER)],
        logprob=NUMBER,
        tool_calls=[{SECRET: NUMBER}],
        token_ids=(8125,),
    )


VALUES: list[Any] = [
    event(),
    Candidate(SECRET, NUMBER),
    Answer(SECRET, SECRET, [{SECRET: NUMBER}], Statistics("session", "model")),
    Embeddings("model", [[NUMBER]]),
    LogprobEntry(SECRET, NUMBER, [Candidate(SECRET, NUMBER)]),
    DebugInfo(SECRET),
    Message(SECRET, SECRET, [{SECRET: NUMBER}]),
    GenerateRecord(response=SECRET, thinking=SECRET, error=SECRET),
    ChatRecord(message=Message(SECRET)),
    CachedToken(SECRET, candidates=[Candidate(SECRET, NUMBER)]),
    Cached(1, [CachedToken(SECRET)], Finish.STOP, 8125, 8125),
    REQUEST,
    Asked(REQUEST, {"prompt": SECRET}),
    Response(200, SECRET.encode()),
    Exit(1, SECRET),
]


def test_the_fields_of_a_token_event_come_in_the_order_of_the_contract() -> None:
    names = [each.name for each in dataclasses.fields(TokenEvent)]
    assert names[:7] == [
        "token", "timestamp_ms", "delta_ms", "session_id", "model", "logprobs", "energy",
    ]  # fmt: skip
    defaults = list(dataclasses.fields(TokenEvent))[5:]
    assert all(each.default is not dataclasses.MISSING for each in defaults)
    bare = TokenEvent("a", 1, 2, "s", "m")
    assert (bare.logprobs, bare.energy, bare.index) == (None, None, 0)
    assert (bare.source, bare.channel) == (Source.LIVE, Channel.TEXT)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
def test_no_repr_shows_text_or_a_number_made_of_text(value: Any) -> None:
    shown = [repr(value), str(value), f"{value}", f"{value!r}", "%s %r" % (value, value)]
    shown += [repr([value]), repr({"a": value}), pprint.pformat(value), pprint.pformat([value])]
    shown += [format(value), "{}".format(value), repr(ValueError(value))]
    shown += [pretty_repr(value), pretty_repr([value])]
    try:
        raise ValueError(value)
    except ValueError as error:
        shown += traceback.format_exception(error)
    for each in shown:
        assert "SECRET" not in each
        assert "8125" not in each


def test_a_repr_still_tells_one_event_from_another() -> None:
    assert repr(event()).startswith("TokenEvent(timestamp_ms=1, delta_ms=2, session_id='session'")


def test_an_event_is_equal_to_one_with_the_same_values() -> None:
    assert event() == event()
    assert event() != dataclasses.replace(event(), index=1)


@pytest.mark.parametrize(
    "value",
    [
        SessionFrame(0.5, State.FLOWING),
        Frame(1, 2, 3, 4, 5.0, 6.0, 7.0, 0.8, State.IDLE, {}),
        Guarantee("ttft", True, 1.0, 2.0, "ms"),
        Health(True, "ready"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_is_published_to_many_cannot_be_changed_by_one(value: Any) -> None:
    for name in type(value).__annotations__:
        with pytest.raises(AttributeError):
            setattr(value, name, None)


def test_the_words_of_the_daemon_are_kept_as_they_are() -> None:
    assert [Finish(each).value for each in ("stop", "length", "load", "unload")] == [
        Finish.STOP, Finish.LENGTH, Finish.LOAD, Finish.UNLOAD,
    ]  # fmt: skip
    assert f"{Source.LIVE} {Channel.TEXT} {State.IDLE}" == "live text idle"
