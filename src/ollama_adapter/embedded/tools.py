"""Chats with tools: the engine's own chat endpoint, whose answers it parses into calls; pure.

That endpoint gives no log probabilities and no token ids, so neither do the records of such a chat.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from ollama_adapter.embedded.records import Event, Timings


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | None = None


class _Call(msgspec.Struct):
    index: int = 0
    id: str | None = None
    function: _Function = msgspec.field(default_factory=_Function)


class _Delta(msgspec.Struct):
    content: str | None = None
    tool_calls: list[_Call] = []


class _Choice(msgspec.Struct):
    delta: _Delta = msgspec.field(default_factory=_Delta)
    finish_reason: str | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: Timings | None = None
    error: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(_Chunk).decode


def chat_body(
    messages: list[dict[str, Any]], tools: Any, sampling: Mapping[str, Any]
) -> dict[str, Any]:
    """The request to the engine's chat endpoint."""
    return {
        **sampling,
        "messages": messages,
        "tools": tools,
        "max_tokens": sampling["n_predict"],
        "stream": True,
        "stream_options": {"include_usage": True},
        "reasoning_format": "none",
    }


class ToolStream:
    """Chunks of the chat endpoint in, events out; the calls come whole, in one event."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}
        self._finish = ""

    def feed(self, data: bytes) -> list[Event]:
        """The events that one chunk makes."""
        if data.strip() == b"[DONE]":
            return []
        chunk = _decode(data)
        if chunk.error is not None:
            return [Event(error=chunk.error)]
        events: list[Event] = []
        for choice in chunk.choices:
            self._finish = choice.finish_reason or self._finish
            for call in choice.delta.tool_calls:
                self._gather(call)
            if choice.delta.content:
                events.append(Event(content=choice.delta.content))
        if chunk.usage is not None:
            if self._calls:
                events.append(Event(tool_calls=self._whole_calls()))
            events.append(self._last(chunk.usage, chunk.timings))
        return events

    def _gather(self, part: _Call) -> None:
        call = self._calls.setdefault(part.index, _Call(part.index, function=_Function("", "")))
        call.id = part.id or call.id
        call.function.name = (call.function.name or "") + (part.function.name or "")
        call.function.arguments = (call.function.arguments or "") + (part.function.arguments or "")

    def _whole_calls(self) -> list[dict[str, Any]]:
        calls = []
        for index, call in sorted(self._calls.items()):
            try:
                arguments = msgspec.json.decode(call.function.arguments or "{}")
            except msgspec.DecodeError:  # cut short by the limit of tokens
                arguments = {}
            function = {"index": index, "name": call.function.name, "arguments": arguments}
            calls.append({"id": call.id or f"call_{index}", "function": function})
        return calls

    def _last(self, usage: _Usage, timings: Timings | None) -> Event:
        return Event(
            stop=True,
            stop_type="limit" if self._finish == "length" else "eos",
            tokens_evaluated=usage.prompt_tokens,
            tokens_predicted=usage.completion_tokens,
            timings=timings,
        )
