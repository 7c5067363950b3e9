"""Generating: records, log probabilities, stops, formats, cuts, on a real engine with random weights."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest

from tests.embedded.daemons import Daemon

ENDLESS = {"type": "string", "minLength": 4000}
"""A format that keeps random weights from ending by themselves."""
WORD = {"type": "string", "enum": ["日本 🙂é<&>"]}


def text_of(lines: list[dict[str, Any]]) -> str:
    return "".join(each["response"] for each in lines)


def test_records_have_ollamas_shape(daemon: Daemon) -> None:
    answer = daemon.generate(format=ENDLESS, options={"num_predict": 5, "seed": 1})
    assert answer.headers["content-type"] == "application/x-ndjson"
    assert answer.headers["transfer-encoding"] == "chunked"
    *records, last = answer.lines
    for each in records:
        assert set(each) <= {"model", "created_at", "response", "done", "token_ids"}
        assert (each["model"], each["done"]) == ("tiny", False)
    assert list(last)[:5] == ["model", "created_at", "response", "done", "done_reason"]
    assert (last["response"], last["done"], last["done_reason"]) == ("", True, "length")
    assert last["eval_count"] == 5
    assert last["total_duration"] >= last["eval_duration"] > 0
    assert last["prompt_eval_count"] > 2


def test_one_answer_when_no_stream_is_asked_for(daemon: Daemon) -> None:
    options = {"num_predict": 8, "seed": 7}
    streamed = daemon.generate(options=options, logprobs=True).lines
    whole = daemon.generate(options=options, logprobs=True, stream=False)
    assert whole.headers["content-type"] == "application/json; charset=utf-8"
    assert "content-length" in whole.headers
    assert not whole.body.endswith(b"\n")
    assert whole.json["response"] == text_of(streamed)
    entries = [entry for each in streamed[:-1] for entry in each["logprobs"]]
    assert [each["token"] for each in whole.json["logprobs"]] == [each["token"] for each in entries]


def test_log_probabilities_have_ollamas_shape(daemon: Daemon) -> None:
    records = daemon.generate(logprobs=True, top_logprobs=3, options={"num_predict": 20, "seed": 3})
    for each in records.lines[:-1]:
        (entry,) = each["logprobs"]
        assert list(entry) == ["token", "logprob", "bytes", "top_logprobs"]
        assert entry["token"] == each["response"]
        assert bytes(entry["bytes"]).decode() == entry["token"]
        assert len(entry["top_logprobs"]) == 3
        best = [other["logprob"] for other in entry["top_logprobs"]]
        assert best == sorted(best, reverse=True)
        for other in entry["top_logprobs"]:
            assert ("bytes" in other) == bool(other["token"])
            assert bytes(other.get("bytes", b"")).decode() == other["token"]
    assert "logprobs" not in records.lines[-1]


def test_log_probabilities_are_those_before_temperature(daemon: Daemon) -> None:
    def first(**options: Any) -> list[float]:
        lines = daemon.generate(
            raw=True,
            format=ENDLESS,
            logprobs=True,
            top_logprobs=4,
            options={"num_predict": 1, **options},
        ).lines
        return [each["logprob"] for each in lines[0]["logprobs"][0]["top_logprobs"]]

    assert first(temperature=0) == pytest.approx(first(temperature=2, top_k=2, seed=5), abs=1e-4)


def test_entries_come_without_alternatives_unless_asked(daemon: Daemon) -> None:
    line = daemon.generate(format=ENDLESS, logprobs=True, options={"num_predict": 2}).lines[0]
    assert set(line["logprobs"][0]) == {"token", "logprob", "bytes"}
    for line in daemon.generate(format=ENDLESS, top_logprobs=2, options={"num_predict": 3}).lines:
        assert "logprobs" not in line


def test_a_character_of_several_tokens_is_one_record_with_one_entry(daemon: Daemon) -> None:
    answer = daemon.generate(format=WORD, logprobs=True, top_logprobs=2)
    *records, last = answer.lines
    assert text_of(records) == '"日本 🙂é<&>"'
    assert b"\\u003c\\u0026\\u003e" in answer.body.replace(b"\n", b"") or b"\\u003c" in answer.body
    by_text = {each["response"]: each for each in records}
    for character in "日本🙂é":
        record = by_text[character]
        (entry,) = record["logprobs"]
        assert entry["token"] == character
        assert bytes(entry["bytes"]).decode() == character
        assert record["token_ids"] == list(character.encode())
    assert by_text["<"]["token_ids"] == [ord("<")]
    assert last["done_reason"] == "stop"
    assert len(records) < last["eval_count"]


def test_a_cut_in_the_middle_of_a_character_shows_nothing_of_it(daemon: Daemon) -> None:
    lines = daemon.generate(format={"enum": ["🙂"]}, options={"num_predict": 3}).lines
    assert text_of(lines) == '"'
    assert lines[-1]["eval_count"] == 3
    whole = daemon.generate(format={"enum": ["🙂"]}, options={"num_predict": 3}, stream=False).json
    assert whole["response"] == '"'


def test_a_schema_is_obeyed(daemon: Daemon) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"enum": ["a", "b"]}, "n": {"type": "integer", "maximum": 9}},
        "required": ["name", "n"],
        "additionalProperties": False,
    }
    for answer in (
        daemon.generate(format=schema, stream=False).json["response"],
        daemon.chat("x", format=schema, stream=False).json["message"]["content"],
    ):
        value = json.loads(answer)
        assert value["name"] in ("a", "b")
        assert isinstance(value["n"], int)


def test_json_begins_an_object(daemon: Daemon) -> None:
    options = {"num_predict": 20}
    assert daemon.generate(format="json", stream=False, options=options).json["response"][0] == "{"


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nonsense"},
        {"properties": {"a": {"$ref": "http://x/y"}}},
        {"$ref": "#/$defs/none", "$defs": {}},
        {"type": "string", "pattern": "("},
    ],
)
def test_a_schema_that_cannot_be_obeyed_is_refused(schema: Any, daemon: Daemon) -> None:
    answer = daemon.generate(format=schema)
    assert answer.status == 400
    assert "schema" in answer.error


def test_a_format_that_the_engine_drops_is_an_error(daemon: Daemon) -> None:
    looking_ahead = {"type": "string", "pattern": "(?=a)b{2000,}"}
    answer = daemon.generate(format=looking_ahead, options={"num_predict": 4000})
    assert answer.error == "the engine cannot hold the answer to this format"


def test_a_schema_may_refer_to_itself(daemon: Daemon) -> None:
    schema = {"$ref": "#/$defs/a~1b", "$defs": {"a/b": {"enum": ["yes"]}}}
    assert daemon.generate(format=schema, stream=False).json["response"] == '"yes"'


def test_a_stop_text_is_held_back_and_cut(daemon: Daemon) -> None:
    word = {"enum": ["one two three"]}
    lines = daemon.generate(
        format=word, options={"stop": [" three", "nothing"]}, logprobs=True
    ).lines
    assert text_of(lines) == '"one two'
    assert lines[-1]["done_reason"] == "stop"
    tokens = [entry["token"] for each in lines[:-1] for entry in each["logprobs"]]
    assert "".join(tokens) == '"one two'
    assert lines[-1]["eval_count"] > len('"one two')


def test_text_that_only_looked_like_a_stop_comes_in_one_piece(daemon: Daemon) -> None:
    word = {"enum": ["one two"]}
    lines = daemon.generate(format=word, options={"stop": [" ten"]}, logprobs=True).lines
    assert text_of(lines) == '"one two"'
    held = next(each for each in lines if each["response"] == " tw")
    assert [each["token"] for each in held["logprobs"]] == [" tw"]
    assert len(held["token_ids"]) == 2


def test_an_empty_stop_text_is_none(daemon: Daemon) -> None:
    lines = daemon.generate(format=ENDLESS, options={"stop": [""], "num_predict": 3}).lines
    assert lines[-1]["eval_count"] == 3


def test_a_token_list_continues_exactly(daemon: Daemon) -> None:
    def continue_(tokens: list[int], count: int) -> list[dict[str, Any]]:
        options = {"temperature": 0, "num_predict": count}
        return daemon.generate(
            "", model="tinydoc", raw=True, prompt_tokens=tokens, options=options
        ).lines

    def whole_and_start() -> tuple[list[dict[str, Any]], list[int]]:
        """An answer of twelve records, each of one token: what the model says is not for us to know."""
        for first in range(300, 400):
            lines = continue_(list(range(first, first + 20)), 12)
            if len(lines) == 13 and all(len(each["token_ids"]) == 1 for each in lines[:-1]):
                return lines, list(range(first, first + 20))
        raise AssertionError("this model says nothing of twelve tokens")

    whole, start = whole_and_start()
    first = continue_(start, 5)
    rest = continue_([*start, *(each["token_ids"][0] for each in first[:-1])], 7)
    assert text_of(first) + text_of(rest) == text_of(whole)
    assert rest[-1]["prompt_eval_count"] == 25


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"prompt_tokens": [1]}, "needs raw"),
        ({"prompt_tokens": [1], "raw": True, "prompt": "x"}, "no prompt beside it"),
        ({"prompt_tokens": [99999], "raw": True, "prompt": ""}, "invalid tokens"),
        ({"prompt_tokens": [], "raw": True, "prompt": ""}, "must not be empty"),
        ({"template": "{{ .Prompt }}"}, "template inside the model file"),
        ({"context": [1, 2]}, "context is not supported"),
    ],
)
def test_what_cannot_be_honoured_is_refused(
    fields: dict[str, Any], words: str, daemon: Daemon
) -> None:
    answer = daemon.ask("/api/generate", {"model": "tiny", "prompt": "", **fields})
    assert answer.status == 400
    assert words in answer.error


def test_the_rendered_prompt_can_be_seen(daemon: Daemon) -> None:
    rendered = daemon.generate("hello", system="be brief", _debug_render_only=True).json
    expected = "<|im_start|>{}\n{}<|im_end|>\n"
    assert rendered["done"] is False
    assert rendered["_debug_info"]["rendered_template"] == (
        expected.format("system", "be brief")
        + expected.format("user", "hello")
        + "<|im_start|>assistant\n"
    )
    chat = daemon.chat("hello", "well", _debug_render_only=True).json
    assert chat["message"] == {"role": "", "content": ""}
    assert chat["_debug_info"]["rendered_template"].endswith("<|im_start|>assistant\nwell")
    raw = daemon.generate("hello", raw=True, _debug_render_only=True).json
    assert raw["_debug_info"]["rendered_template"] == "hello"
    bare = daemon.generate("hello", model="bare", _debug_render_only=True).json
    assert bare["_debug_info"]["rendered_template"] == "hello"
    listed = daemon.generate("", raw=True, prompt_tokens=[*b"hi", 257], _debug_render_only=True)
    assert listed.json["_debug_info"]["rendered_template"] == "hi<|im_start|>"
    for each in (rendered, chat, raw, bare, listed.json):
        assert set(each) <= {"model", "created_at", "response", "message", "done", "_debug_info"}


def test_what_is_rendered_is_what_is_evaluated(daemon: Daemon) -> None:
    """A token per byte, but for the three that begin and end a message, and ` t`."""
    options = {"num_predict": 1}
    hello: dict[str, Any] = {"prompt": "hello"}
    messages = [{"role": each, "content": each} for each in ("system", "user", "assistant", "user")]
    for path, model, said in (
        ("generate", "tiny", {**hello, "system": "be brief"}),
        ("generate", "tiny", {**hello, "raw": True}),
        ("generate", "bare", hello),
        ("generate", "bare", {**hello, "system": "be brief"}),
        ("chat", "tiny", {"messages": messages}),
        ("chat", "bare", {"messages": messages}),
    ):
        body = {"model": model, "stream": False, "options": options, **said}
        shown = daemon.ask(f"/api/{path}", {**body, "_debug_render_only": True}).json
        text = shown["_debug_info"]["rendered_template"]
        again = daemon.generate(text, model, raw=True, stream=False, options=options).json
        plain = daemon.ask(f"/api/{path}", body).json
        assert plain["prompt_eval_count"] == again["prompt_eval_count"]


def test_chat_records_have_ollamas_shape(daemon: Daemon) -> None:
    *records, last = daemon.chat("hello", format=ENDLESS, options={"num_predict": 4}).lines
    for each in records:
        assert set(each) <= {"model", "created_at", "message", "done", "token_ids"}
        assert set(each["message"]) == {"role", "content"}
        assert each["message"]["role"] == "assistant"
    assert last["message"] == {"role": "assistant", "content": ""}
    assert last["done_reason"] == "length"


def test_an_unfinished_assistant_message_is_continued_and_repeated(daemon: Daemon) -> None:
    fields: dict[str, Any] = {"options": {"num_predict": 3}, "format": ENDLESS}
    lines = daemon.chat("hello", "so be", logprobs=True, **fields).lines
    first = lines[0]["message"]["content"]
    assert first.startswith("so be")
    assert first == "so be" + lines[0]["logprobs"][0]["token"]
    whole = daemon.chat("hello", "so be", stream=False, **fields).json
    assert whole["message"]["content"].startswith("so be")
    messages = [{"role": "assistant", "content": each} for each in "ab"]
    answer = daemon.ask("/api/chat", {"model": "tiny", "messages": messages})
    assert answer.status == 400
    nested = json.loads(answer.error)["error"]
    assert nested["message"].startswith("Cannot have 2 or more assistant messages")


def test_the_same_seed_gives_the_same_text(daemon: Daemon) -> None:
    one, two = (
        text_of(daemon.generate(options={"seed": 42, "num_predict": 20}).lines) for _ in range(2)
    )
    assert one == two


def test_tools_need_a_template_that_knows_them(daemon: Daemon) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
    refused = daemon.chat("x", tools=tools)
    assert refused.status == 400
    assert refused.error == "registry.ollama.ai/library/tiny:latest does not support tools"
    lines = daemon.chat("x", model="tools", tools=tools, options={"num_predict": 5}).lines
    assert lines[-1]["done"] is True


class TestPromptsThatAreTooLong:
    LONG = "abcdefgh" * 100

    def test_the_error_has_both_numbers(self, daemon: Daemon) -> None:
        answer = daemon.generate(self.LONG, raw=True, truncate=False, options={"num_ctx": 256})
        assert answer.status == 400
        nested = json.loads(answer.error)["error"]
        assert nested == {
            "code": 400,
            "message": "request (800 tokens) exceeds the available context size (256 tokens), "
            "try increasing it",
            "type": "exceed_context_size_error",
            "n_prompt_tokens": 800,
            "n_ctx": 256,
        }

    def test_it_is_cut_as_ollama_cuts_it(self, daemon: Daemon) -> None:
        for context, keep, count in ((128, 4, 66), (16, 4, 10), (4, 4, 3), (128, 60, 94)):
            options = {"num_ctx": context, "num_keep": keep, "num_predict": 1}
            last = daemon.generate(self.LONG, raw=True, options=options).lines[-1]
            assert last["prompt_eval_count"] == count

    def test_token_lists_are_cut_too(self, daemon: Daemon) -> None:
        last = daemon.generate(
            "", raw=True, prompt_tokens=[65] * 200, options={"num_ctx": 128, "num_predict": 1}
        ).lines[-1]
        assert last["prompt_eval_count"] == 66

    def test_one_that_fills_the_context_is_too_long(self, daemon: Daemon) -> None:
        """The engine needs room for one token more."""
        fields: dict[str, Any] = {"raw": True, "options": {"num_ctx": 256, "num_predict": 1}}
        for prompt in ({"prompt": "a" * 256}, {"prompt": "", "prompt_tokens": [97] * 256}):
            cut = daemon.ask("/api/generate", {"model": "tiny", **prompt, **fields})
            assert (cut.status, cut.lines[-1]["prompt_eval_count"]) == (200, 130)
            whole = {"model": "tiny", "truncate": False, **prompt, **fields}
            assert "exceeds the available context size" in daemon.ask("/api/generate", whole).error
        fits = daemon.generate("a" * 255, truncate=False, **fields)
        assert (fits.status, fits.lines[-1]["prompt_eval_count"]) == (200, 255)
        refused = daemon.generate("a" * 256, shift=False, **fields)
        assert (refused.status, refused.error[:34]) == (400, "the prompt is longer than the cont")

    def test_one_of_the_size_asked_for_fits_where_the_engine_has_more(self, daemon: Daemon) -> None:
        for context in (4, 64):
            fields: dict[str, Any] = {"raw": True, "options": {"num_ctx": context}}
            last = daemon.generate("a" * context, stream=False, **fields)
            assert (last.status, last.json["prompt_eval_count"]) == (200, context)

    def test_a_chat_of_exactly_the_context_forgets_its_oldest_message(self, daemon: Daemon) -> None:
        options = {"num_predict": 1}
        turns = ["a" * 60, "b" * 60, "c" * 60]
        rest = daemon.chat(*turns, options=options).lines[-1]["prompt_eval_count"] - 60
        turns[0] = "a" * (256 - rest)
        options["num_ctx"] = 256
        last = daemon.chat(*turns, options=options).lines[-1]
        assert rest - 20 < last["prompt_eval_count"] < rest

    def test_without_a_sliding_window_it_is_refused(self, daemon: Daemon) -> None:
        answer = daemon.generate(self.LONG, raw=True, shift=False, options={"num_ctx": 128})
        assert answer.status == 400
        assert answer.error.startswith("the prompt is longer than the context length currently")

    def test_a_chat_forgets_its_oldest_messages_and_keeps_the_system(self, daemon: Daemon) -> None:
        messages = [{"role": "system", "content": "keep me"}]
        messages += [{"role": "user", "content": f"{i:02d}" * 20} for i in range(20)]
        request: dict[str, Any] = {
            "model": "tiny",
            "messages": messages,
            "options": {"num_predict": 1},
        }
        full = daemon.ask("/api/chat", request).lines[-1]["prompt_eval_count"]
        request["options"] = {"num_ctx": 256, "num_predict": 1}
        part = daemon.ask("/api/chat", request).lines[-1]["prompt_eval_count"]
        one = (full - 9) // 21
        assert 256 - 2 * one < part <= 256
        request["truncate"] = False
        assert daemon.ask("/api/chat", request).status == 400

    def test_one_message_that_is_too_long_is_cut(self, daemon: Daemon) -> None:
        last = daemon.chat(self.LONG, options={"num_ctx": 128, "num_predict": 1}).lines[-1]
        assert last["prompt_eval_count"] == 66


def test_the_context_slides_or_ends_the_answer(daemon: Daemon) -> None:
    options = {"num_ctx": 64, "num_predict": 300, "seed": 2}
    sliding = daemon.generate("a", raw=True, format=ENDLESS, options=options).lines[-1]
    assert (sliding["done_reason"], sliding["eval_count"]) == ("length", 300)
    ended = daemon.generate("a", raw=True, format=ENDLESS, options=options, shift=False).lines[-1]
    assert ended["done_reason"] == "length"
    assert ended["eval_count"] <= 256


def test_unlimited_means_ten_contexts(daemon: Daemon) -> None:
    for wanted in (-1, -2, 0, 10**30):
        options = {"num_ctx": 16, "num_predict": wanted}
        last = daemon.generate("a", raw=True, format=ENDLESS, options=options).lines[-1]
        assert (last["done_reason"], last["eval_count"]) == ("length", 160)


def test_requests_beyond_the_slots_wait_their_turn(daemon: Daemon) -> None:
    answers: list[int] = []

    def ask() -> None:
        options = {"num_predict": 50}
        answers.append(daemon.generate(format=ENDLESS, options=options).lines[-1]["eval_count"])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert answers == [50] * 6


def test_names_are_matched_whatever_their_case_and_echoed_as_given(daemon: Daemon) -> None:
    for name in ("TINY", "tiny:latest", "tiny:local", "library/tiny"):
        line = daemon.generate(model=name, options={"num_predict": 1}).lines[-1]
        assert line["model"] == name


def test_a_model_that_cannot_be_loaded_says_why(daemon: Daemon) -> None:
    answer = daemon.generate(model="broken")
    assert answer.status == 500
    assert "error loading model" in answer.error
    assert "blk.0.attn_q.weight" in answer.error
    assert "broken:latest" not in daemon.resident()


def test_the_bundled_model_answers(daemon: Daemon) -> None:
    lines = daemon.chat("What does len do?", model="tinydoc", options={"num_predict": 20}).lines
    assert lines[-1]["done"] is True
    assert "".join(each["message"]["content"] for each in lines)
