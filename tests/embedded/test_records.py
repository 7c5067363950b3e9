"""Records as bytes, and the events they are made of."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core import gguf
from ollama_adapter.embedded.pieces import Pieces, Trail
from ollama_adapter.embedded.records import Answer, Event, decode_event, go_json, timestamp
from ollama_adapter.embedded.tools import ToolStream, chat_body
from tests.embedded import ggufs


@pytest.fixture
def pieces() -> Pieces:
    """Those of a model that has a token per byte."""
    data = ggufs.llama()
    return Pieces.read(gguf.parse(data), data)


@given(st.text(max_size=40))
def test_text_is_written_as_go_writes_it(text: str) -> None:
    data = go_json({"x": text})
    assert json.loads(data) == {"x": text}
    assert not re.search(b"[<>&\n]|\xe2\x80[\xa8\xa9]", data)


@given(st.integers(0, 1 << 62))
def test_times_are_written_as_go_writes_them(ns: int) -> None:
    shown = timestamp(ns)
    assert re.fullmatch(r"\d{4,}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?Z", shown)


def test_a_time_in_full() -> None:
    assert timestamp(1_700_000_000_120_000_000) == "2023-11-14T22:13:20.12Z"
    assert timestamp(1_700_000_000_000_000_000) == "2023-11-14T22:13:20Z"


EVENTS = [  # text, id, and the engine's count of tokens, which sees those that it does not name
    ("a", 97, 1),
    ("", 116, 2),  # held back: it may become a stop text
    ("to", 111, 3),
    ("é", 169, 5),
    ("", 257, 6),  # a control token
    ("", 98, 7),
    ("b日", 165, 10),
]


def test_a_record_has_the_ids_of_all_tokens_since_the_one_before(pieces: Pieces) -> None:
    answer = Answer("m", chat=False, top=None)
    answer.trail = Trail(pieces)
    lines = [
        answer.record(Event(content=text, tokens=[token], tokens_predicted=count))
        for text, token, count in EVENTS
    ]
    assert [json.loads(line).get("token_ids") for line in lines if line] == [
        [97],
        [116, 111],
        [195, 169],
        [257, 98, 230, 151, 165],
    ]


def test_the_last_record_has_the_ids_that_show_no_text(pieces: Pieces) -> None:
    answer = Answer("m", chat=False, top=None)
    answer.trail = Trail(pieces)
    answer.record(Event(content="", tokens=[258], tokens_predicted=1))
    last = Event(stop=True, tokens_predicted=1)
    assert json.loads(answer.last(last))["token_ids"] == [258]
    answer.trail = Trail(pieces)
    assert "token_ids" not in json.loads(answer.last(last)), "it was not named"


def test_no_ids_are_given_where_they_are_not_known() -> None:
    answer = Answer("m", chat=False, top=None)
    lines = [
        answer.record(Event(content=text, tokens=[token], tokens_predicted=count))
        for text, token, count in EVENTS
    ]
    assert [json.loads(line).get("token_ids") for line in lines if line] == [
        [97],
        [116, 111],
        None,
        None,
    ]


def test_an_event_shows_nothing_of_its_text_by_accident() -> None:
    assert decode_event(b'{"content":"x","tokens":[1],"unknown":{}}').content == "x"


def chunk(**fields: object) -> bytes:
    return json.dumps(fields).encode()


def test_calls_of_tools_are_gathered_and_come_whole() -> None:
    stream = ToolStream()
    events = stream.feed(chunk(choices=[{"delta": {"role": "assistant", "content": None}}]))
    events += stream.feed(chunk(choices=[{"delta": {"content": "well "}}]))
    for call in (
        {"index": 0, "id": "c1", "function": {"name": "add", "arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
        {"index": 1, "function": {"name": "cut", "arguments": '{"b'}},
    ):
        events += stream.feed(chunk(choices=[{"delta": {"tool_calls": [call]}}]))
    events += stream.feed(chunk(choices=[{"delta": {}, "finish_reason": "tool_calls"}]))
    usage = {"prompt_tokens": 5, "completion_tokens": 9}
    events += stream.feed(chunk(choices=[], usage=usage, timings={"prompt_ms": 1.5}))
    events += stream.feed(b"[DONE]")
    text, calls, last = events
    assert text.content == "well "
    assert last.stop
    assert (last.tokens_evaluated, last.tokens_predicted, last.stop_type) == (5, 9, "eos")
    answer = Answer("m", chat=True, top=None)
    record = json.loads(answer.record(calls))
    assert record["done"] is False
    assert record["message"]["tool_calls"] == [
        {"id": "c1", "function": {"index": 0, "name": "add", "arguments": {"a": 1}}},
        {"id": "call_1", "function": {"index": 1, "name": "cut", "arguments": {}}},
    ]
    whole = json.loads(answer.last(last, "well ", None, calls.tool_calls))
    assert whole["message"]["content"] == "well "
    assert len(whole["message"]["tool_calls"]) == 2
    assert whole["done_reason"] == "stop"


def test_an_error_in_a_chat_is_an_event() -> None:
    (event,) = ToolStream().feed(chunk(error={"code": 500, "message": "x"}))
    assert event.error == {"code": 500, "message": "x"}


def test_the_limit_of_tokens_is_told_to_the_chat_endpoint() -> None:
    assert chat_body([], [], {"n_predict": 7})["max_tokens"] == 7
