"""Requests, ready to be sent: checked, with our defaults, encoded.

Everything is checked at the call, before anything is sent. `truncate` is false unless asked for, since
the daemon would cut a prompt that is too long without a word. A body is never shown: no repr holds it.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from ollama_adapter.core.names import local_name
from ollama_adapter.core.vocabulary import (
    CHAT,
    EMBED,
    GENERATE,
    IMAGES,
    MAPPINGS,
    RELOADING,
    TEXT,
    TEXTS,
    TOP_LOGPROBS,
    check,
    kind_of,
    split_fields,
    wire_keep_alive,
)
from ollama_adapter.errors import InvalidRequest
from ollama_adapter.veiled import Veiled


class Request(Veiled, msgspec.Struct, frozen=True):
    """One request, ready to be sent; `reloading`: its options that decide how a model is loaded."""

    path: str
    model: str
    body: bytes
    keep_alive: str | float
    reloading: Mapping[str, Any]
    truncate: bool = False
    logprobs: bool = False
    renders: bool = False
    """Only the rendered prompt is asked for."""
    texts: int = 0
    """How many vectors are asked for."""
    needs: tuple[str, ...] = ()
    """What the model must be able to do, in the daemon's words; `tokens`: to know the tokens it is given."""

    def ungranted(self, missing: Sequence[str]) -> tuple[str, ...]:
        """What is asked for, of what the daemon is too old to know."""
        asked = {
            "logprobs": self.logprobs,
            "truncate": not self.truncate,
            "_debug_render_only": self.renders,
        }
        return tuple(each for each in missing if asked.get(each, False))


def generate_request(
    model: str, prompt: str, keywords: Mapping[str, Any], keep_alive: str | float
) -> Request:
    """A streaming /api/generate. InvalidRequest names what cannot be sent."""
    check("prompt", TEXT, prompt)
    fields = split_fields(GENERATE, keywords)
    if not prompt and not fields.get("prompt_tokens"):
        raise InvalidRequest(
            "the prompt is empty", hint="pass some text; to only load a model, use ensure_loaded"
        )
    if "images" in fields:
        fields["images"] = [_encode_image(each) for each in fields["images"]]
    return _request("/api/generate", model, {"prompt": prompt}, _with_logprobs(fields), keep_alive)


def chat_request(
    model: str,
    messages: Sequence[Mapping[str, Any]],
    keywords: Mapping[str, Any],
    keep_alive: str | float,
) -> Request:
    """A streaming /api/chat. InvalidRequest names what cannot be sent."""
    check("messages", MAPPINGS, messages)
    if not messages:
        raise InvalidRequest(
            "there are no messages", hint='pass [{"role": "user", "content": "…"}]'
        )
    sent = [_message(place, each) for place, each in enumerate(messages)]
    fields = _with_logprobs(split_fields(CHAT, keywords))
    return _request("/api/chat", model, {"messages": sent}, fields, keep_alive)


def embed_request(
    model: str, texts: str | Sequence[str], keywords: Mapping[str, Any], keep_alive: str | float
) -> Request:
    """An /api/embed. InvalidRequest names what cannot be sent."""
    if not isinstance(texts, str):
        check("input", TEXTS, texts)
    fields = split_fields(EMBED, keywords)
    sent = texts if isinstance(texts, str) else list(texts)
    return _request("/api/embed", model, {"input": sent}, fields, keep_alive)


def load_request(
    model: str, keep_alive: str | float, reloading: Mapping[str, Any], *, embedding: bool = False
) -> Request:
    """A request that loads a model and generates nothing."""
    if embedding:
        return _request("/api/embed", model, {"input": []}, {"options": reloading}, keep_alive)
    options = {name: value for name, value in reloading.items() if name != "shift"}
    fields: dict[str, Any] = {"stream": False, "options": options}
    if "shift" in reloading:
        fields["shift"] = reloading["shift"]
    return _request("/api/generate", model, {"prompt": ""}, fields, keep_alive)


def _request(
    path: str,
    model: str,
    content: Mapping[str, Any],
    fields: Mapping[str, Any],
    keep_alive: str | float,
) -> Request:
    if not isinstance(model, str):
        raise InvalidRequest(f"model must be a string, not {kind_of(model)}")
    name = str(local_name(model))
    body = {"model": name, "keep_alive": keep_alive, **content, "truncate": False, **fields}
    body["keep_alive"] = wire_keep_alive(body["keep_alive"])
    options = body.get("options") or {}
    return Request(
        path=path,
        model=name,
        body=_encode(body),
        keep_alive=body["keep_alive"],
        reloading={key: options[key] for key in RELOADING if key in options}
        | ({"shift": body["shift"]} if "shift" in body else {}),
        truncate=body["truncate"],
        logprobs=body.get("logprobs", False),
        renders=body.get("_debug_render_only", False),
        texts=_count(body.get("input")),
        needs=_needs(body),
    )


def _needs(body: Mapping[str, Any]) -> tuple[str, ...]:
    """The capabilities that a request makes use of."""
    if "input" in body:
        return ("embedding",)
    images = body.get("images") or any(each.get("images") for each in body.get("messages", ()))
    asked = {
        "completion": True,
        "tools": body.get("tools"),
        "vision": images,
        "thinking": body.get("think"),
        "insert": body.get("suffix"),
        "tokens": body.get("prompt_tokens") or body.get("context"),
    }
    return tuple(name for name, wanted in asked.items() if wanted)


def _count(texts: object) -> int:
    return len(texts) if isinstance(texts, list) else int(texts is not None)


def _with_logprobs(fields: dict[str, Any]) -> dict[str, Any]:
    if fields.get("logprobs", True):
        return {"logprobs": True, "top_logprobs": TOP_LOGPROBS} | fields
    if "top_logprobs" in fields:
        raise InvalidRequest("top_logprobs needs logprobs", hint="leave logprobs=False out")
    return fields


def _message(place: int, message: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(message.get("role"), str):
        raise InvalidRequest(
            f"message {place} has no role", hint='each message is {"role": "user", "content": "…"}'
        )
    sent = dict(message)
    if sent.get("content") is not None:  # bytes would go out as base64
        check(f"the content of message {place}", TEXT, sent["content"])
    if "images" in sent:
        check(f"images of message {place}", IMAGES, sent["images"])
        sent["images"] = [_encode_image(each) for each in sent["images"]]
    return sent


def _encode_image(image: str | bytes) -> str:
    return image if isinstance(image, str) else base64.b64encode(image).decode("ascii")


def _plain(value: Any) -> Any:
    """What JSON calls by another type: mappings, and subclasses such as a NumPy number."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(type(value).__name__)


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        return msgspec.json.encode(body, enc_hook=_plain)
    except UnicodeEncodeError:  # its message would show the text
        pass
    except (TypeError, msgspec.MsgspecError, RecursionError):
        raise InvalidRequest("the request holds a value that JSON cannot express") from None
    raise InvalidRequest(
        "the request holds half a surrogate pair, which is no text",
        hint="decode the text with errors='replace'",
    )
