"""The wire: any slicing of the same bytes gives the same records, then the same failure."""

from __future__ import annotations

import itertools
import json
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.pretty import pretty_repr

from ollama_adapter.core.records import (
    CONTEXT_KEY,
    LONG_LINE,
    MAX_LINE,
    ChatRecord,
    GenerateRecord,
    RecordDecoder,
    context_length,
)

NOT_A_RECORD = "the daemon sent a line that is not a record"
NOT_UTF8 = "the daemon sent text that is not UTF-8"
DEEP = 20_000  # deeper than any Python lets C recurse: 3.13 goes down to 10,000
TOO_DEEP = "the daemon sent JSON nested too deeply"
TOO_LONG = "the daemon sent a line of over 4 MiB"
WENT_ON = "the daemon went on after its last record"
HUGE = b"9" * 400

texts = st.text(
    st.characters(codec="utf-8") | st.sampled_from('\u2028\u2029\u0085\n\r\t\x0b\x1c\ufeff\0"\\')
)
blank_lines = st.sampled_from([b"", b"\r", b" ", b"\t \r"])
BROKEN = [
    (b"nonsense", NOT_A_RECORD),
    (b"{", NOT_A_RECORD),
    (b'{"response":"half', NOT_A_RECORD),
    (b'{"response":"a"}{"response":"b"}', NOT_A_RECORD),
    (b"[]", NOT_A_RECORD),
    (b"null", NOT_A_RECORD),
    (b'"text"', NOT_A_RECORD),
    (b'{"response":5}', NOT_A_RECORD),
    (b'{"done":"yes"}', NOT_A_RECORD),
    (b'{"done":true,"total_duration":' + HUGE + b"}", NOT_A_RECORD),
    (b'{"done":true,"eval_count":9223372036854775808}', NOT_A_RECORD),
    (b'{"response":"a","token_ids":[-' + HUGE + b"]}", NOT_A_RECORD),
    (b'{"response":"a","total_duration":NaN}', NOT_A_RECORD),
    (b'{"response":"a\x01b"}', NOT_A_RECORD),
    (b'{"response":"\\ud800"}', NOT_A_RECORD),
    (b'{"response":"\\udc00\\ud800"}', NOT_A_RECORD),
    (b'\xef\xbb\xbf{"response":"a"}', NOT_A_RECORD),
    (b'{"response":"\xff"}', NOT_UTF8),
    (b'{"response":"\xc3"}', NOT_UTF8),
    (b'{"response":"\xed\xa0\x80"}', NOT_UTF8),
    (b'{"error":' + b"[" * DEEP + b"]" * DEEP + b"}", TOO_DEEP),
    (b'{"unknown":' + b'{"a":' * DEEP + b"0" + b"}" * (DEEP + 1), TOO_DEEP),
]
broken_lines = st.sampled_from(BROKEN)


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, str | None, str | None]:
    """A line, the text of its record, and the failure it is."""
    kind = draw(st.sampled_from(("record", "record", "record", "record", "blank", "broken")))
    if kind == "blank":
        return draw(blank_lines), None, None
    if kind == "broken":
        line, failure = draw(broken_lines)
        return line, None, failure
    text = draw(texts)
    body: dict[str, Any] = {"model": "m", "response": text, "done": draw(st.booleans())}
    if draw(st.booleans()):
        body["unknown"] = {"nested": [text, {"context": [1, 2]}]}
    line = json.dumps(body, ensure_ascii=draw(st.booleans())).encode()
    return line + draw(st.sampled_from((b"", b"\r", b"  "))), text, None


def cut(data: bytes, at: Iterable[int]) -> list[bytes]:
    places = sorted({0, len(data), *(each % (len(data) + 1) for each in at)})
    return [data[a:b] for a, b in itertools.pairwise(places)]


def decode(
    pieces: Iterable[bytes], kind: Any = GenerateRecord
) -> tuple[list[Any], str | None, int]:
    decoder: RecordDecoder[Any] = RecordDecoder(kind)
    records = [record for piece in pieces for record in decoder.feed(piece)]
    records += decoder.finish()
    return records, str(decoder.failure) if decoder.failure else None, decoder.context_tokens


@given(st.lists(lines(), max_size=8), st.booleans(), st.lists(st.integers(0), max_size=12))
@example([(b'{"response":"\xe2\x80\xa8\xc2\x85"}', "\u2028\u0085", None)], True, [15, 16, 17])
@example([(b'{"response":"a"}\r', "a", None), (b"\r", None, None)], True, [])
def test_any_slicing_gives_the_records_before_the_first_broken_line_and_then_its_failure(
    script: list[tuple[bytes, str | None, str | None]], ends: bool, at: list[int]
) -> None:
    data = b"\n".join(line for line, _, _ in script) + (b"\n" if ends else b"")
    expected: list[str] = []
    failure: str | None = None
    over = False
    for line, text, failure in script:
        if over and text is not None:
            failure = WENT_ON
        if failure is not None:
            break
        expected += [] if text is None else [text]
        over = over or b'"done": true' in line  # in a text its quotes are escaped
    for pieces in (cut(data, at), [data], [data[i : i + 1] for i in range(min(len(data), 3000))]):
        if sum(map(len, pieces)) < len(data):
            continue  # too long to be fed byte by byte
        records, found, _ = decode(pieces)
        assert [each.response for each in records] == expected
        assert found == failure


@pytest.mark.parametrize(("line", "failure"), BROKEN)
def test_the_records_before_a_broken_line_are_delivered(line: bytes, failure: str) -> None:
    data = b'{"response":"a"}\n\r\n{"response":"b"}\n' + line + b'\n{"response":"c"}\n'
    for pieces in ([data], cut(data, range(0, len(data), 19)), cut(data, [len(data) // 2])):
        records, found, _ = decode(pieces)
        assert [each.response for each in records] == ["a", "b"]
        assert found == failure


def test_nothing_follows_the_last_record_however_it_is_cut() -> None:
    last, more = b'{"response":"a","done":true}\n', b'{"response":"b"}\n'
    for data in (last + more, last + b"\n" + more + more, last + more + b"nonsense\n", last + last):
        for pieces in ([data], cut(data, [len(last)]), cut(data, range(len(data)))):
            records, found, _ = decode(pieces)
            assert [each.response for each in records] == ["a"]
            assert found == WENT_ON
    assert decode([last + b"\r\n \n"])[1] is None


def test_a_record_is_given_out_with_the_read_that_ends_its_line() -> None:
    decoder = RecordDecoder(GenerateRecord)
    assert decoder.feed(b'{"response":"a"}\n{"resp') != []
    assert decoder.feed(b'onse":"b"}') == []
    assert [each.response for each in decoder.feed(b"\n")] == ["b"]
    assert decoder.finish() == []


def test_the_fields_of_a_generate_record() -> None:
    line = (
        b'{"model":"tiny","created_at":"2026-11-22T12:17:47.08Z","response":" riv","done":true,'
        b'"done_reason":"length","context":[1,2,3],"total_duration":11,"load_duration":12,'
        b'"prompt_eval_count":13,"prompt_eval_duration":14,"eval_count":15,"eval_duration":16,'
        b'"token_ids":[17,4],"remote_host":"h","thinking":"t","logprobs":[{"token":" riv",'
        b'"logprob":-1.25,"bytes":[32],"top_logprobs":[{"token":"r","logprob":-2.5,"bytes":[1]}]}]}'
    )
    (record,), failure, _ = decode([line])
    assert failure is None
    assert (record.response, record.thinking, record.done) == (" riv", "t", True)
    assert (record.done_reason, record.remote_host, record.token_ids) == ("length", "h", (17, 4))
    assert (record.total_duration, record.load_duration) == (11, 12)
    assert (record.prompt_eval_count, record.prompt_eval_duration) == (13, 14)
    assert (record.eval_count, record.eval_duration) == (15, 16)
    assert context_length(record, 0) == 3
    (entry,) = record.logprobs
    assert (entry.token, entry.logprob) == (" riv", -1.25)
    assert [(each.token, each.logprob) for each in entry.top_logprobs] == [("r", -2.5)]


def test_a_chat_record_holds_a_message_with_its_tool_calls() -> None:
    line = (
        b'{"message":{"role":"assistant","content":"a","thinking":"b",'
        b'"tool_calls":[{"function":{"name":"f","arguments":{"x":1}}}]},"done":false}'
    )
    (record,), _, _ = decode([line], ChatRecord)
    assert (record.message.content, record.message.thinking) == ("a", "b")
    assert record.message.tool_calls == [{"function": {"name": "f", "arguments": {"x": 1}}}]


@pytest.mark.parametrize("error", ["words", {"code": 500, "message": "x"}, ["a", 1], 5, False, ""])
def test_an_error_may_be_any_json_value(error: Any) -> None:
    (record,), failure, _ = decode([json.dumps({"error": error}).encode() + b"\n"])
    assert failure is None
    assert record.error == error


@pytest.mark.parametrize("kind", [GenerateRecord, ChatRecord])
def test_no_repr_shows_text_or_a_log_probability(kind: Any) -> None:
    line = json.dumps(
        {
            "response": "SECRET",
            "thinking": "SECRET",
            "error": "SECRET",
            "_debug_info": {"rendered_template": "SECRET"},
            "message": {"content": "SECRET", "tool_calls": [{"SECRET": 1}]},
            "logprobs": [
                {
                    "token": "SECRET",
                    "logprob": -0.8125,
                    "top_logprobs": [{"token": "SECRET", "logprob": -0.8125}],
                }
            ],
        }
    ).encode()
    (record,), _, _ = decode([line], kind)
    for each in (record, record.logprobs, record.debug_info, getattr(record, "message", None)):
        for shown in (repr(each), str(each), f"{each}", f"{each!r}", pretty_repr(each)):
            assert "SECRET" not in shown
            assert "8125" not in shown


# Limits


def long_line(size: int) -> bytes:
    """A record of exactly `size` bytes."""
    head, tail = b'{"response":"', b'"}'
    return head + b"x" * (size - len(head) - len(tail)) + tail


@pytest.mark.parametrize("piece", [1 << 30, 1 << 20, LONG_LINE, LONG_LINE - 1, 5000])
def test_the_limit_of_a_line_is_the_same_for_any_slicing(piece: int) -> None:
    for size, failure in ((MAX_LINE, None), (MAX_LINE + 1, TOO_LONG)):
        data = b'{"response":"first"}\n' + long_line(size) + b'\n{"response":"last"}\n'
        records, found, _ = decode(data[at : at + piece] for at in range(0, len(data), piece))
        assert found == failure
        sizes = [len(each.response) for each in records]
        assert sizes == ([5, MAX_LINE - 15, 4] if failure is None else [5])


def test_a_line_without_end_is_given_up_and_forgotten() -> None:
    decoder = RecordDecoder(GenerateRecord)
    tracemalloc.start()
    try:
        for _ in range(400):
            decoder.feed(b"x" * LONG_LINE)
        assert str(decoder.failure) == TOO_LONG
        assert tracemalloc.get_traced_memory()[0] < LONG_LINE
    finally:
        tracemalloc.stop()
    assert decoder.feed(b'\n{"response":"a"}\n') == []
    assert decoder.finish() == []


def test_a_long_line_in_tiny_pieces_is_read_in_linear_time() -> None:
    """Were every byte looked at again with every piece, this would take hours."""
    line = long_line(MAX_LINE)
    records, failure, _ = decode(line[at : at + 16] for at in range(0, len(line), 16))
    assert failure is None
    assert len(records) == 1


# The echo of the context


def last_line(tokens: int, text: int, after: str = "") -> bytes:
    context = ",".join(str(each % 50_000) for each in range(tokens))
    return (
        f'{{"response":"{"x" * text}","done":true,"done_reason":"stop","context":[{context}],'
        f'"eval_count":7{after}}}\n'
    ).encode()


@settings(max_examples=40)
@given(
    st.sampled_from((0, 1, 2, 3, 1000, 15_000, 40_000)),
    st.sampled_from((0, 10, 60_000, LONG_LINE - 70, LONG_LINE, 70_000)),
    st.lists(st.integers(0), max_size=10),
    st.sampled_from((1 << 30, LONG_LINE, 10_007, 997)),
)
@example(1, LONG_LINE - 65, [], 1)
@example(40_000, LONG_LINE - 65, [], 1)
def test_the_context_is_counted_alike_for_any_slicing(
    tokens: int, text: int, at: list[int], size: int
) -> None:
    data = b'{"response":"a"}\n' + last_line(tokens, text)
    pieces = [
        piece[start : start + size]
        for piece in cut(data, at)
        for start in range(0, len(piece), size)
    ]
    records, failure, dropped = decode(pieces)
    assert failure is None
    assert [each.done for each in records] == [False, True]
    last = records[-1]
    assert (len(last.response), last.eval_count) == (text, 7)
    assert context_length(last, dropped) == tokens


@pytest.mark.parametrize("cut_at", range(len(CONTEXT_KEY) + 3))
def test_a_context_whose_key_is_cut_is_found(cut_at: int) -> None:
    data = last_line(30_000, LONG_LINE)
    place = data.index(CONTEXT_KEY) + cut_at
    records, failure, dropped = decode([data[:place], data[place:]])
    assert failure is None
    assert dropped == context_length(records[0], dropped) == 30_000


@pytest.mark.parametrize("piece", [LONG_LINE, 100])
def test_a_context_of_any_length_takes_no_memory(piece: int) -> None:
    decoder = RecordDecoder(GenerateRecord)
    head, numbers = last_line(1, LONG_LINE).split(b"0]")[0], b"12345," * (piece // 6)
    tracemalloc.start()
    try:
        decoder.feed(head)
        fed = 0
        while fed < 8 * piece * 100:
            decoder.feed(numbers)
            fed += len(numbers)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    (record,) = decoder.feed(b'7],"eval_count":7}\n')
    assert record.eval_count == 7
    assert context_length(record, decoder.context_tokens) == fed // 6 + 1
    assert peak < 8 * LONG_LINE


def test_text_that_looks_like_a_context_is_text() -> None:
    text = 'so "context":[1,2,3] it said ' * 5000
    data = json.dumps({"response": text, "error": None, "done": True}).encode() + b"\n"
    for pieces in ([data], [data[:LONG_LINE], data[LONG_LINE:]]):
        (record,), failure, dropped = decode(pieces)
        assert failure is None
        assert record.response == text
        assert context_length(record, dropped) == 0


def test_the_arguments_of_a_tool_may_be_called_context() -> None:
    """The echo is a matter of /api/generate; a chat keeps all that a tool is called with."""
    calls = [{"function": {"name": "f", "arguments": {"context": list(range(30_000))}}}]
    body = {"message": {"content": "", "tool_calls": calls}, "done": False}
    data = json.dumps(body, separators=(",", ":")).encode() + b"\n"
    for pieces in ([data], cut(data, range(0, len(data), 9999))):
        (record,), failure, dropped = decode(pieces, ChatRecord)
        assert failure is None
        assert record.message.tool_calls == calls
        assert dropped == 0


@pytest.mark.parametrize(("context", "tokens"), [("[]", 0), ("null", 0), ("[5]", 1), ("[5,6]", 2)])
def test_a_short_context_is_counted(context: str, tokens: int) -> None:
    (record,), _, dropped = decode([f'{{"context":{context}}}'.encode()])
    assert context_length(record, dropped) == tokens
    assert context_length(GenerateRecord(), 0) == 0
