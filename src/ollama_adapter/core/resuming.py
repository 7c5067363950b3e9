"""Which ways a stream that was interrupted may go on, and the request that each sends.

The most exact way comes first. A way that could give another answer than the uncut one, where the caller
was promised the same, is refused, with the reason in words; so is one that this daemon does not know.
Everything here is made from the request's own body and from the transcript.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from ollama_adapter.core.requests import Request
from ollama_adapter.core.transcript import Transcript
from ollama_adapter.events import Channel, Way
from ollama_adapter.veiled import Veiled

FAITHFUL: Final = 0.5
"""A continuation from text that predicts the last token less alike is given up."""


class Plan(msgspec.Struct, frozen=True):
    """The ways that are open, the most exact first, and of the others why they are not."""

    ways: tuple[Way, ...]
    refusals: tuple[str, ...] = ()


class Asked(Veiled, msgspec.Struct, frozen=True):
    """A request as its caller made it."""

    request: Request
    body: Mapping[str, Any]

    @classmethod
    def of(cls, request: Request) -> Asked:
        return cls(request, msgspec.json.decode(request.body))

    @property
    def options(self) -> Mapping[str, Any]:
        return self.body.get("options") or {}

    @property
    def greedy(self) -> bool:
        """Every step takes the most probable token."""
        return self.options.get("temperature") == 0

    @property
    def seeded(self) -> bool:
        """The caller was promised the same answer each time. (A seed below 0 is drawn anew.)"""
        seed = self.options.get("seed")
        return seed is not None and seed >= 0

    def remaining(self, generated: int) -> int | None:
        """How many tokens may still come; None: no limit was asked for."""
        limit = self.options.get("num_predict") or 0
        return max(0, limit - generated) if limit > 0 else None


def plan_ways(
    asked: Asked, transcript: Transcript, *, embedded: bool, renders: bool, rerun_tokens: int
) -> Plan:
    """The ways to go on. `renders`: the daemon knows `_debug_render_only`."""
    if not len(transcript):
        return Plan((Way.ANEW,))
    reasons = {
        Way.TOKENS: _against_tokens(asked, transcript, embedded),
        Way.RERUN: _against_rerun(asked, transcript, rerun_tokens),
        Way.TEXT: _against_text(asked, transcript, renders),
    }
    return Plan(
        tuple(way for way, why in reasons.items() if not why),
        tuple(f"{way}: {why}" for way, why in reasons.items() if why),
    )


def _against_tokens(asked: Asked, transcript: Transcript, embedded: bool) -> str:
    if not embedded:
        return "only the embedded daemon goes on from token ids"
    if not transcript.ids:
        return "the daemon did not tell the id of every token"
    if asked.seeded and not asked.greedy:
        return "a seed does not resume, and it promises the same answer"
    return _against_going_on(asked, transcript)


def _against_rerun(asked: Asked, transcript: Transcript, most: int) -> str:
    if not (asked.greedy or asked.seeded):
        return "without temperature 0 or a seed a second run gives another answer"
    if len(transcript) > most:
        return f"more than stream.resume_tokens ({most}) would be computed once more"
    return ""


def _against_text(asked: Asked, transcript: Transcript, renders: bool) -> str:
    body = asked.body
    if asked.seeded:
        return "a seed promises the same answer, and text may be read as other tokens"
    if transcript.text(Channel.THINKING) or body.get("think"):
        return "the model's thinking cannot be put back"
    for name in ("suffix", "context", "prompt_tokens"):
        if body.get(name):
            return f"{name} cannot be rendered"
    if not renders and not body.get("raw"):
        return "this Ollama is too old to show the rendered prompt"
    return _against_going_on(asked, transcript)


def _against_going_on(asked: Asked, transcript: Transcript) -> str:
    """What neither ids nor text can continue."""
    if asked.body.get("format"):
        return "format would begin anew"
    if asked.body.get("tools") or transcript.tool_calls:
        return "tool calls are only seen whole"
    if asked.body.get("images") or _shows_images(asked.body):
        return "images cannot be put back"
    return ""


def _shows_images(body: Mapping[str, Any]) -> bool:
    return any(each.get("images") for each in body.get("messages", ()))


def render_request(asked: Asked) -> Request:
    """Asks for the prompt as the model gets it."""
    body = dict(asked.body) | {"_debug_render_only": True, "stream": False}
    return replace(asked.request, body=msgspec.json.encode(body), renders=True)


def continue_tokens(
    asked: Asked, ids: list[int], remaining: int | None, *, stepwise: bool = False
) -> Request:
    """The same request, from after `ids`; the embedded daemon only. `stepwise`: it reads them one by one.

    That takes as long as writing them did, and gives the very numbers that writing them gave.
    """
    body = dict(asked.body) | {"continue_tokens": ids} | _limited(asked, remaining)
    if stepwise:
        body["continue_stepwise"] = True
    return replace(asked.request, body=msgspec.json.encode(body))


def continue_text(asked: Asked, rendered: str, text: str, remaining: int | None) -> Request:
    """What follows `text` after a prompt that was rendered; always from /api/generate."""
    kept = ("model", "keep_alive", "truncate", "shift", "logprobs", "top_logprobs", "options")
    body = {each: asked.body[each] for each in kept if each in asked.body}
    body |= {"prompt": rendered + text, "raw": True} | _limited(asked, remaining)
    return replace(asked.request, path="/api/generate", body=msgspec.json.encode(body))


def _limited(asked: Asked, remaining: int | None) -> dict[str, Any]:
    if remaining is None:
        return {}
    return {"options": dict(asked.options) | {"num_predict": remaining}}


def one_token(request: Request) -> Request:
    """The same, but for one token, the most probable: a look at what the model predicts there."""
    body = msgspec.json.decode(request.body)
    body["options"] = (body.get("options") or {}) | {"num_predict": 1, "temperature": 0}
    body |= {"stream": False}
    return replace(request, body=msgspec.json.encode(body))
