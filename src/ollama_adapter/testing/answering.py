"""An answer to one request: the prompt rendered, its pieces, its records in Ollama's shapes; pure.

The pieces follow what was recorded of the real daemon: text that may become a stop string is held back, a
character of several tokens is one piece, what thinks is split from what is said, and a limit that falls
inside a character leaves it out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.records import logprob_entry
from ollama_adapter.embedded.requests import Asked
from ollama_adapter.testing.inventing import invent
from ollama_adapter.testing.model import (
    THINK,
    THOUGHT,
    TURN,
    PretendModel,
    Token,
    Writer,
    count_tokens,
)

_END: Final = "<|im_end|>\n"
_JSON_PIECE: Final = 4
_CALL_COST: Final = 12


@dataclass(slots=True)
class Piece:
    """What one record adds to the answer."""

    text: str = field(default="", repr=False)
    thinking: str = field(default="", repr=False)
    entries: list[dict[str, Any]] = field(default_factory=list, repr=False)
    calls: list[dict[str, Any]] | None = field(default=None, repr=False)


def render(asked: Asked) -> str:
    """The prompt as the model gets it: ChatML, unless `raw`. A last turn is closed whoever had it."""
    body = asked.body
    if not asked.chat and body.get("raw"):
        return str(body.get("prompt", ""))
    messages: list[Mapping[str, Any]] = list(body.get("messages", ()))
    if not asked.chat:
        messages = [{"role": "user", "content": body.get("prompt", "")}]
        if body.get("system"):
            messages.insert(0, {"role": "system", "content": body["system"]})
    turns = [f"<|im_start|>{each.get('role', '')}\n{_content(each)}{_END}" for each in messages]
    if body.get("tools"):
        turns.insert(0, f"<|im_start|>system\n{_json(body['tools'])}{_END}")
    return "".join(turns) + TURN


def _content(message: Mapping[str, Any]) -> str:
    calls = message.get("tool_calls")
    return str(message.get("content") or "") + (_json(calls) if calls else "")


def _json(value: Any) -> str:
    return msgspec.json.encode(value).decode()


class Answer:
    """The pieces of an answer, each made when it is asked for; `reason` and `count` hold at the end."""

    def __init__(self, model: PretendModel, asked: Asked, options: Mapping[str, Any]) -> None:
        self.prompt = render(asked)
        self.prompt_count = count_tokens(self.prompt)
        self.count = 0
        self.reason = "stop"
        self._asked = asked
        self._model = model
        self._limit = max(0, options.get("num_predict", 0)) or 10 * model.context_length
        self._stops = [each for each in options.get("stop", ()) if each]
        self._top = asked.top_logprobs
        self._temperature = float(options.get("temperature", 0.0))
        seed = options.get("seed", -1)
        self._seed = None if seed < 0 else int(seed)
        raw = bool(asked.body.get("raw")) and not asked.chat
        self._splits = model.thinks and not raw and asked.body.get("think") is not False
        self._mode = ""
        self._fresh = False

    def __iter__(self) -> Iterator[Piece]:
        if self._wants_tool():
            self.count = _CALL_COST
            yield Piece(calls=[_call(self._asked.body["tools"][0])])
            return
        held = ""
        for token in self._tokens():
            if self._splits and token.text in (THINK, THOUGHT):
                if held:
                    yield self._piece(held, [])
                held, self._mode, self._fresh = "", token.text, True
                if not self._asked.chat:
                    yield Piece(entries=self._entries(token, token.text))
                continue
            held += token.text
            free, over = self._free(held)
            said, held = held[:free], held[free:]
            if said:
                shown = said if token.text.startswith(said) else token.text
                yield self._piece(said, self._entries(token, shown))
            if over:
                self.reason = "stop"
                return
        if held:
            yield self._piece(held, [])

    def _piece(self, said: str, entries: list[dict[str, Any]]) -> Piece:
        """Thought or said, by the mode; the first piece of either loses its space."""
        if self._fresh:
            said, self._fresh = said.lstrip(), False
        if self._mode == THINK:
            return Piece(thinking=said, entries=entries)
        return Piece(said, entries=entries)

    def _free(self, held: str) -> tuple[int, bool]:
        """How much of the text can go out, and whether a stop string ends it there."""
        found = [at for at in (held.find(each) for each in self._stops) if at >= 0]
        if found:
            return min(found), True
        for at in range(len(held)):
            if any(each.startswith(held[at:]) for each in self._stops):
                return at, False
        return len(held), False

    def _tokens(self) -> Iterator[Token]:
        """As many as may be; a character that the limit would cut is left out."""
        for token in self._source():
            self.count += token.cost
            if self.count <= self._limit:
                yield token
            if self.count >= self._limit:
                self.count = self._limit
                self.reason = "length"
                return

    def _source(self) -> Iterator[Token]:
        wanted = self._asked.schema
        if wanted is not None:
            text = _json(invent(wanted, wanted, zlib.crc32(self.prompt.encode("utf-8", "replace"))))
            for at in range(0, len(text), _JSON_PIECE):
                part = text[at : at + _JSON_PIECE]
                yield Token(part, 0.0, ((part, 0.0),))
            return
        writer = Writer(
            self._model,
            self.prompt,
            self._temperature,
            self._seed,
            alternatives=self._top is not None,
        )
        while (token := writer.next()) is not None:
            yield token

    def _entries(self, token: Token, shown: str) -> list[dict[str, Any]]:
        if self._top is None:
            return []
        entry = logprob_entry(shown, token.logprob)
        if self._top:
            best = token.candidates[: self._top]
            entry["top_logprobs"] = [logprob_entry(*each) for each in best]
        return [entry]

    def _wants_tool(self) -> bool:
        messages = self._asked.body.get("messages") or [{}]
        return bool(self._asked.body.get("tools")) and messages[-1].get("role") != "tool"

    def context(self, text: str) -> list[int]:
        """Numbers for the words of prompt and answer, as a last record echoes them."""
        return [zlib.crc32(each.encode()) % 32_000 for each in (self.prompt + text).split()]


def _call(tool: Any) -> dict[str, Any]:
    """A call of a tool with arguments that fit its parameters."""
    function = tool.get("function", {}) if isinstance(tool, dict) else {}
    parameters = function.get("parameters") or {"properties": {}}
    arguments = invent(parameters, parameters, 0)
    return {"function": {"name": function.get("name", ""), "arguments": arguments}}


class Records:
    """Pieces and ends as records of the endpoint; a `stamp` is the time as Ollama writes it."""

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def piece(self, piece: Piece, stamp: str, *, done: bool = False) -> dict[str, Any]:
        """A record that adds to the answer."""
        record: dict[str, Any] = {"model": self._asked.model, "created_at": stamp}
        if self._asked.chat:
            message: dict[str, Any] = {"role": "assistant", "content": piece.text}
            record["message"] = message | self._besides(piece)
        else:
            record |= {"response": piece.text} | self._besides(piece)
        record["done"] = done
        if piece.entries:
            record["logprobs"] = piece.entries
        return record

    @staticmethod
    def _besides(piece: Piece) -> dict[str, Any]:
        besides: dict[str, Any] = {"thinking": piece.thinking} if piece.thinking else {}
        return besides | ({"tool_calls": piece.calls} if piece.calls else {})

    def last(
        self, whole: Piece, stamp: str, reason: str, figures: Mapping[str, Any]
    ) -> dict[str, Any]:
        """The last record; zeros are left out, as Ollama does."""
        record = self.piece(whole, stamp, done=True)
        entries = record.pop("logprobs", None)
        record |= {"done_reason": reason} | {name: each for name, each in figures.items() if each}
        return record if entries is None else record | {"logprobs": entries}

    def rendered(self, prompt: str, stamp: str) -> dict[str, Any]:
        """The answer to `_debug_render_only`."""
        record = self.piece(Piece(), stamp)
        if self._asked.chat:
            record["message"]["role"] = ""
        return record | {"_debug_info": {"rendered_template": prompt}}


def joined(pieces: Sequence[Piece]) -> Piece:
    """A whole answer in one piece, as `stream: false` has it."""
    return Piece(
        "".join(each.text for each in pieces),
        "".join(each.thinking for each in pieces),
        [entry for each in pieces for entry in each.entries],
        [call for each in pieces for call in each.calls or ()] or None,
    )
