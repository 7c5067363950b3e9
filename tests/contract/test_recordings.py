"""Every recording of the real daemon, at several slicings: what a caller gets, and that it is the truth.

`data/outcomes.toml` states the outcome of each. The text and the numbers are compared with a reading of
the raw bytes that shares no code with the package.
"""

from __future__ import annotations

import json
import socket
import tomllib
from dataclasses import dataclass, field
from typing import Any

import pytest

from ollama_adapter.events import Channel
from ollama_adapter.system.http import Exchange
from tests.contract.replay import (
    DATA,
    Outcome,
    Recording,
    is_call,
    load_recordings,
    replay_call,
    replay_generation,
    slicings,
)

pytestmark = pytest.mark.anyio

RECORDINGS = load_recordings()
OUTCOMES: dict[str, dict[str, Any]] = tomllib.loads((DATA / "outcomes.toml").read_text("utf-8"))


def _named(kind: str) -> list[Any]:
    return [pytest.param(each, id=each.name) for each in RECORDINGS if each.name in OUTCOMES[kind]]


@dataclass
class Truth:
    """The raw bytes, read by other means: http framing by hand, json from the standard library."""

    text: str = ""
    thinking: str = ""
    logprobs: list[float] = field(default_factory=list)
    eval_count: int = 0
    pieces: int = 0


def read_truth(recording: Recording) -> Truth:
    truth = Truth()
    head, _, rest = recording.wire.partition(b"\r\n\r\n")
    while head.startswith(b"HTTP/1.1 100"):
        head, _, rest = rest.partition(b"\r\n\r\n")
    if b" 200 " not in head.split(b"\r\n")[0]:
        return truth
    body = _dechunk(rest) if b"chunked" in head else rest
    for line in body.split(b"\n"):
        if line.strip():
            _add(truth, json.loads(line))
    return truth


def _dechunk(rest: bytes) -> bytes:
    body = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        body += rest[: int(size or b"0", 16)]
        rest = rest[int(size or b"0", 16) + 2 :]
    return body[: body.rfind(b"\n") + 1] if body.endswith(b"\n") else body


def _add(truth: Truth, record: dict[str, Any]) -> None:
    message = record.get("message", {})
    rendered = record.get("_debug_info", {}).get("rendered_template", "")
    text = record.get("response", "") or message.get("content", "") or rendered
    thinking = record.get("thinking", "") or message.get("thinking", "")
    entries = record.get("logprobs", [])
    truth.text += text
    truth.thinking += thinking
    truth.eval_count = record.get("eval_count", truth.eval_count)
    said = text or thinking
    if entries and "".join(each["token"] for each in entries) == said:
        spoken = [each for each in entries if each["token"]]
        truth.pieces += len(spoken)
        truth.logprobs += [each["logprob"] for each in spoken]
    else:
        truth.pieces += bool(text) + bool(thinking)
        truth.logprobs += [each["logprob"] for each in entries[-1:] if said]


def check_against_truth(recording: Recording, outcome: Outcome) -> None:
    truth = read_truth(recording)
    assert outcome.text(Channel.TEXT) == truth.text
    assert outcome.text(Channel.THINKING) == truth.thinking
    assert len(outcome.events) == truth.pieces
    chosen = [each.logprob for each in outcome.events if each.logprob is not None]
    assert chosen == truth.logprobs
    assert [each.index for each in outcome.events] == list(range(len(outcome.events)))
    assert outcome.statistics is not None
    assert outcome.statistics.eval_count == truth.eval_count
    assert all(0.0 <= (each.energy or 0.0) <= 1.0 for each in outcome.events)


@pytest.mark.parametrize("recording", _named("generations"))
async def test_a_generation_ends_as_stated_and_tells_the_truth_at_every_slicing(
    recording: Recording,
) -> None:
    stated = OUTCOMES["generations"][recording.name]
    for slicing, pieces in slicings(recording):
        outcome = await replay_generation(recording, pieces)
        assert outcome.how == stated, f"{slicing}: {outcome.error}"
        check_against_truth(recording, outcome)


@pytest.mark.parametrize("recording", _named("calls"))
async def test_a_call_answers_as_stated(recording: Recording) -> None:
    assert await replay_call(recording) == OUTCOMES["calls"][recording.name]


@pytest.mark.parametrize("recording", _named("parser"))
async def test_the_parser_reads_what_we_never_ask_for(recording: Recording) -> None:
    for slicing, pieces in slicings(recording):
        body = bytearray()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            exchange = Exchange(ours, b"", lambda _, data, _now, body=body: body.extend(data))  # type: ignore[misc]
            for piece in pieces:
                exchange.receive(piece)
            exchange.receive(b"")
        assert exchange.status == OUTCOMES["parser"][recording.name], slicing
        assert recording.wire.endswith(bytes(body)) or b"chunked" in recording.wire


def test_every_recording_has_a_stated_outcome_of_the_right_kind() -> None:
    stated = {kind: set(names) for kind, names in OUTCOMES.items()}
    assert stated["generations"] == {each.name for each in RECORDINGS if each.generates}
    calls = {each.name for each in RECORDINGS if is_call(each) and not each.generates}
    assert stated["calls"] == calls
    rest = {each.name for each in RECORDINGS} - stated["generations"] - stated["calls"]
    assert stated["parser"] == rest
    assert len(RECORDINGS) == 329


@pytest.mark.parametrize("recording", _named("generations"))
async def test_no_error_shows_the_prompt_or_the_answer(recording: Recording) -> None:
    outcome = await replay_generation(recording, list(recording.reads))
    if outcome.error is None:
        return
    shown = f"{outcome.error} {outcome.error!r} {outcome.error.hint}"
    for secret in (_prompt(recording), read_truth(recording).text):
        assert len(secret) < 6 or secret not in shown


def _prompt(recording: Recording) -> str:
    try:
        body = json.loads(recording.body)
    except ValueError:
        return ""
    said = body.get("prompt") if isinstance(body, dict) else ""
    return said if isinstance(said, str) else ""
