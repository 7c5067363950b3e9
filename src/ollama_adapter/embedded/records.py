"""The bytes of the answers: Ollama's records, written as Go writes JSON.

Pure but for the clock. The record of a token is put together from ready parts: this is the hot path of
the daemon. `Answer` turns the runner's events into records, one record per piece of valid UTF-8.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.pieces import Pieces, Trail
from ollama_adapter.system.clock import EPOCH_OFFSET_NS, monotonic_ns
from ollama_adapter.veiled import Veiled

encode: Final = msgspec.json.Encoder().encode

_ESCAPES: Final = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    b"\xe2\x80\xa8": b"\\u2028",
    b"\xe2\x80\xa9": b"\\u2029",
}
_ESCAPED: Final = re.compile(b"[<>&]|\xe2\x80[\xa8\xa9]")


class Alternative(Veiled, msgspec.Struct, gc=False):
    """A token and its log probability, as the runner sends them."""

    token: str
    logprob: float


class Chosen(Veiled, msgspec.Struct, gc=False):
    """The token taken, and the best ones in its place."""

    token: str
    logprob: float
    top_logprobs: list[Alternative] = msgspec.field(default_factory=list)


class Timings(msgspec.Struct, gc=False):
    """What the runner measured, in milliseconds."""

    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class Event(Veiled, msgspec.Struct, gc=False):
    """One server-sent event of the runner: a piece of text, or the end."""

    content: str = ""
    tokens: list[int] = msgspec.field(default_factory=list)
    stop: bool = False
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    completion_probabilities: list[Chosen] = msgspec.field(default_factory=list)
    stop_type: str = ""
    timings: Timings | None = None
    error: dict[str, Any] | None = None
    tool_calls: list[dict[str, Any]] | None = None


decode_event: Final = msgspec.json.Decoder(Event).decode


def go_json(value: Any) -> bytes:
    """JSON with the escapes of Go: <, >, & and the line separators as \\u."""
    return escape(encode(value))


def escape(data: bytes) -> bytes:
    """Go's escapes in JSON that lacks them."""
    return _ESCAPED.sub(lambda match: _ESCAPES[match[0]], data)


_second: tuple[int, str] = (-1, "")


def timestamp(ns: int) -> str:
    """RFC 3339 in UTC with nanoseconds, trailing zeros trimmed, as Go writes it."""
    global _second
    second, fraction = divmod(ns, 1_000_000_000)
    if second != _second[0]:
        _second = (second, datetime.fromtimestamp(second, UTC).strftime("%Y-%m-%dT%H:%M:%S"))
    if not fraction:
        return _second[1] + "Z"
    return f"{_second[1]}.{fraction:09d}".rstrip("0") + "Z"


def logprob_entry(token: str, logprob: float) -> dict[str, Any]:
    """One entry as Ollama shows it: no bytes where the token shows no text."""
    if not token:
        return {"token": "", "logprob": logprob}
    return {"token": token, "logprob": logprob, "bytes": list(token.encode())}


class Answer:
    """One generation on its way out: events of the runner in, records out."""

    def __init__(self, model: str, *, chat: bool, top: int | None) -> None:
        self._chat = chat
        self._top = top
        self.prefill = ""  # repeated before the first piece
        self._head = b'{"model":' + go_json(model) + b',"created_at":"'
        self._text = b'","message":{"role":"assistant","content":' if chat else b'","response":'
        self._end = b'},"done":' if chat else b',"done":'
        self.trail = Trail(Pieces(()))
        self.started_ns = monotonic_ns()
        self.load_ns = 0

    def entries(self, event: Event) -> list[dict[str, Any]]:
        """The log probabilities of an event."""
        entries: list[dict[str, Any]] = []
        for chosen in event.completion_probabilities:
            entry = logprob_entry(chosen.token, chosen.logprob)
            if self._top:
                entry["top_logprobs"] = [
                    logprob_entry(each.token, each.logprob)
                    for each in chosen.top_logprobs[: self._top]
                ]
            entries.append(entry)
        return entries

    def text(self, event: Event) -> str:
        """What an event adds to the answer; the first one repeats a prefill, as Ollama does."""
        text, self.prefill = self.prefill + event.content, ""
        return text

    def record(self, event: Event) -> bytes:
        """The line of a piece of text; b"" for an event that shows none."""
        if event.tool_calls:
            return self._with_calls(event.tool_calls) + b"false}\n"
        if not event.content:
            self.trail.hold(event.tokens, event.tokens_predicted)
            return b""
        ids = self.trail.take(event.tokens, event.tokens_predicted, event.content)
        line = [self._opening(self.text(event)), b"false"]
        if self._top is not None:
            line += [b',"logprobs":', encode(self.entries(event))]
        if ids:
            line += [b',"token_ids":', encode(ids)]
        line.append(b"}\n")
        return escape(b"".join(line))

    def last(
        self,
        event: Event,
        text: str = "",
        entries: list[dict[str, Any]] | None = None,
        calls: list[dict[str, Any]] | None = None,
    ) -> bytes:
        """The final record: why it ended, and what was measured (zeros are left out)."""
        timings = event.timings or Timings()
        figures = {
            "total_duration": monotonic_ns() - self.started_ns,
            "load_duration": self.load_ns,
            "prompt_eval_count": event.tokens_evaluated,
            "prompt_eval_duration": int(timings.prompt_ms * 1e6),
            "eval_count": event.tokens_predicted,
            "eval_duration": int(timings.predicted_ms * 1e6),
        }
        tail: dict[str, Any] = {name: value for name, value in figures.items() if value}
        if entries is not None:
            tail["logprobs"] = entries
        if ids := self.trail.rest(event.tokens_predicted):
            tail["token_ids"] = ids
        reason = "length" if event.stop_type == "limit" else "stop"
        opening = self._with_calls(calls, text) if calls else self._opening(text)
        return escape(opening + b"true," + encode({"done_reason": reason, **tail})[1:])

    def short(self, reason: str) -> bytes:
        """The whole answer to a request that generates nothing."""
        return escape(self._opening("") + b"true," + encode({"done_reason": reason})[1:])

    def _with_calls(self, calls: list[dict[str, Any]], text: str = "") -> bytes:
        opening = self._opening(text).removesuffix(self._end)
        return escape(opening + b',"tool_calls":' + encode(calls) + self._end)

    def rendered(self, prompt: str) -> bytes:
        """The answer to a request that asks for the prompt only."""
        opening = self._opening("").replace(b'"role":"assistant"', b'"role":""')
        info = encode({"_debug_info": {"rendered_template": prompt}})
        return escape(opening + b"false," + info[1:])

    def _opening(self, text: str) -> bytes:
        stamp = timestamp(monotonic_ns() + EPOCH_OFFSET_NS).encode()
        return b"".join((self._head, stamp, self._text, encode(text), self._end))
