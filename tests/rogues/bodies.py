"""Rogues whose HTTP is fine, and whose JSON, values or records are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.rogues.wire import (
    BLOCK,
    BROKEN,
    CHUNKED,
    REFUSED,
    WELL,
    Stage,
    Wire,
    add_at,
    body,
    rogue,
    with_field,
)

# Bodies

body("html", BROKEN, b"<!DOCTYPE html><title>Router</title><h1>Welcome</h1>")
body("events_for_a_browser", BROKEN, b'data: {$}\n\ndata: {"done": true}\n')
body("nothing_at_all", BROKEN, b"")
body("nul_bytes", BROKEN, b"\0{$}\0")
body("nul_in_a_string", BROKEN, b'{$, "x": "a\0b"}')
body("not_utf8", BROKEN, b'{$, "response": "\xff\xfe", "version": "\xff", "x": "\xff"}')
body(
    "overlong_utf8", BROKEN, b'{$, "response": "\xc0\xaf", "version": "\xc0\xaf", "x": "\xc0\xaf"}'
)
body("lone_surrogate", BROKEN, rb'{$, "response": "\ud800", "version": "\ud800", "x": "\ud800"}')
body("byte_order_mark", BROKEN, b"\xef\xbb\xbf{$}")
body("utf16", BROKEN, '{"version":"1"}'.encode("utf-16"))
body("not_a_number", BROKEN, b'{$, "x": NaN, "total_duration": NaN, "version": NaN}')
body("infinity", BROKEN, b'{$, "x": Infinity, "total_duration": Infinity, "version": -Infinity}')
body("number_out_of_range", BROKEN, b'{$, "x": 1e999, "total_duration": 1e999}')
body("duplicated_keys", WELL, b"{$, $}")
body("array_for_an_object", BROKEN, b"[{$}]")
body("string_for_an_object", BROKEN, b'"{}"')
body("null", BROKEN, b"null")
body("two_values", BROKEN, b"{$} {$}")
body("cut_value", BROKEN, b'{$, "x": ')
body("half_a_record", BROKEN, b'{"respon')
body("comments", BROKEN, b"{$ /* really */}")
body("single_quotes", BROKEN, b"{'version': '1', 'response': 'x'}")
body("deep_arrays", BROKEN, b'{$, "x": ', b"[" * 100_000, b"]" * 100_000, b"}")
body("deep_objects", BROKEN, b'{$, "x": ', b'{"a":' * 100_000, b"1", b"}" * 100_001)
body("many_keys", WELL, b"{$, ", b",".join(b'"%d": 0' % n for n in range(50_000)), b"}")


@rogue(BROKEN)
async def endless_line(wire: Wire) -> None:
    await wire.say(CHUNKED + b'e\r\n{"response": "\r\n')
    await wire.for_ever(b"%x\r\n%b\r\n" % (BLOCK, b"z" * BLOCK))


# Values

for _value in ("models.example.org", "http://127.0.0.1:1"):
    for _stage in (Stage.SHOW, Stage.LOAD, Stage.GENERATE, Stage.EMBED):
        with_field(
            "remote_host", _value, "RemoteModelRefused", _stage, kind=f"{_value[:4]}_at_{_stage}"
        )
with_field("remote_model", "big", "RemoteModelRefused", Stage.SHOW)
_wrong: Any
for _wrong in (1, [], {}, None):
    with_field("version", _wrong, "NotOllama", Stage.PROBE)
with_field("version", "", "NotOllama", Stage.PROBE, kind="empty")
for _wrong in ("x", 1, {"a": 1}, ["x"], [None]):
    with_field("models", _wrong, BROKEN, Stage.RESIDENTS, kind=json.dumps(_wrong))
for _wrong in ({}, {"name": 1}, {"name": "not a name"}, {"name": None}):
    with_field("models", [_wrong], WELL, Stage.RESIDENTS, kind=json.dumps(_wrong))
for _wrong in ("completion", 1, {"a": 1}, [1, None]):
    with_field("capabilities", _wrong, BROKEN, Stage.SHOW)
for _name in ("response", "thinking", "done_reason", "remote_host"):
    for _wrong in (1, [], {"a": 1}, None):
        with_field(_name, _wrong, BROKEN, Stage.GENERATE)
for _name in ("done", "logprobs", "_debug_info", "token_ids"):
    for _wrong in ("x", ["x"]):
        with_field(_name, _wrong, BROKEN, Stage.GENERATE)
for _name in ("total_duration", "load_duration", "prompt_eval_count", "eval_count"):
    for _wrong in ("x", 1.5, None, [1]):
        with_field(_name, _wrong, BROKEN, Stage.GENERATE)
    with_field(_name, 10**400, BROKEN, Stage.GENERATE, kind="huge")
for _wrong in (1e308, -1e308, 0.0, 5.0):
    entry = {"token": "yes", "logprob": _wrong, "top_logprobs": [{"token": "a", "logprob": _wrong}]}
    with_field("logprobs", [entry], WELL, Stage.GENERATE, kind=str(_wrong))
for _wrong in ("x", {}, [["x"]], [[]] * 2, [[None]], [1], None):
    with_field("embeddings", _wrong, BROKEN, Stage.EMBED, kind=json.dumps(_wrong))
with_field("prompt_eval_count", "x", BROKEN, Stage.EMBED)


def with_lines(name: str, end: str, lines: Callable[[str], list[Any]], status: int = 200) -> None:
    """A rogue that answers a prompt, which it is given, with these records."""

    async def behave(wire: Wire) -> None:
        prompt = json.loads(wire.request.partition(b"\r\n\r\n")[2])["prompt"]
        records = [json.dumps(each).encode() for each in lines(prompt)]
        await wire.answer(b"\n".join(records), status=status)

    add_at(Stage.GENERATE, name, behave, end)


TOKEN, DONE = {"response": "a", "done": False}, {"response": "", "done": True}
with_lines(
    "error_line_with_the_prompt", "StreamInterrupted", lambda p: [TOKEN, {"error": f"no: {p}"}]
)
with_lines("error_line_as_an_object", "StreamInterrupted", lambda p: [TOKEN, {"error": {"a": [p]}}])
with_lines("error_with_the_prompt", REFUSED, lambda p: [{"error": f"cannot: {p}"}], 400)
with_lines(
    "error_with_the_prompt_inside", REFUSED, lambda p: [{"error": json.dumps({"e": p})}], 500
)
with_lines("error_with_the_prompt_backwards", REFUSED, lambda p: [{"error": {"message": p}}], 500)
with_lines(
    "model_not_found_with_the_prompt", "ModelNotFound", lambda p: [{"error": f"{p} not found"}], 404
)
with_lines("busy_with_the_prompt", "ServerBusy", lambda p: [{"error": f"busy: {p}"}], 503)
with_lines(
    "load_failed_with_the_prompt",
    "ModelLoadFailed",
    lambda p: [{"error": f"error loading model {p}"}],
    500,
)
with_lines("status_600", REFUSED, lambda p: [{"error": p}], 600)
with_lines("record_after_done", BROKEN, lambda _: [TOKEN, DONE, TOKEN])
with_lines("done_twice", BROKEN, lambda _: [TOKEN, DONE, DONE])
with_lines("error_after_done", BROKEN, lambda p: [TOKEN, DONE, {"error": p}])
with_lines("never_done", "StreamInterrupted", lambda _: [TOKEN, TOKEN])
with_lines(
    "remote_host_at_the_end", "RemoteModelRefused", lambda _: [TOKEN, DONE | {"remote_host": "x"}]
)
