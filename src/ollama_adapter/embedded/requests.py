"""What a request body may say, and Ollama's own words for everything else.

Pure. A body is decoded to plain values and checked against a table of field types; a wrong one raises
ApiError with the status and the wording that Ollama's clients know. Messages name fields and types.
"""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.values import TOO_DEEP, ApiError, kind_of, parse_keep_alive
from ollama_adapter.veiled import Veiled

_COMMON: Final = {
    "model": "string",
    "stream": "bool",
    "options": "map[string]interface {}",
    "truncate": "bool",
}
_ANSWER: Final = {
    **_COMMON,
    "shift": "bool",
    "logprobs": "bool",
    "top_logprobs": "int",
    "_debug_render_only": "bool",
    "continue_tokens": "[]int",
    "continue_stepwise": "bool",
}
FIELDS: Final[dict[str, dict[str, str]]] = {
    "GenerateRequest": {
        **_ANSWER,
        "prompt": "string",
        "suffix": "string",
        "system": "string",
        "template": "string",
        "context": "[]int",
        "raw": "bool",
        "images": "[]api.ImageData",
        "prompt_tokens": "[]int",
    },
    "ChatRequest": {**_ANSWER, "messages": "[]api.Message", "tools": "api.Tools"},
    "EmbedRequest": {**_COMMON, "dimensions": "int"},
    "EmbeddingRequest": {**_COMMON, "prompt": "string"},
    "ShowRequest": {"model": "string", "name": "string", "verbose": "bool", "system": "string"},
    "DeleteRequest": {"model": "string", "name": "string"},
    "CopyRequest": {"source": "string", "destination": "string"},
    "PullRequest": {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"},
    "PushRequest": {"model": "string", "name": "string", "insecure": "bool", "stream": "bool"},
    "CreateRequest": {
        "model": "string",
        "name": "string",
        "stream": "bool",
        "from": "string",
        "files": "map[string]string",
        "adapters": "map[string]string",
        "template": "string",
        "system": "string",
        "parameters": "map[string]interface {}",
        "messages": "[]api.Message",
        "quantize": "string",
        "remote_host": "string",
    },
}
_MESSAGE: Final = {"role": "string", "content": "string", "thinking": "string"}


def decode_body(body: bytes, struct: str) -> dict[str, Any]:
    """The checked fields of a request body; nulls are left out."""
    if not body.strip():
        raise ApiError(400, "missing request body")
    fields = FIELDS[struct]
    value = _json(body)
    if not isinstance(value, dict):
        raise ApiError(
            400, f"json: cannot unmarshal {kind_of(value)} into Go value of type api.{struct}"
        )
    known = {name: each for name, each in value.items() if each is not None}
    for name, each in known.items():
        if name in fields:
            _check(each, fields[name], f"{struct}.{name}")
    for message in known.get("messages", ()) if "messages" in fields else ():
        _check_message(message)
    return known


def _json(body: bytes) -> Any:
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        pass
    try:  # as Go reads it: bad UTF-8 replaced, what follows the first value ignored
        text = body.decode("utf-8", "replace").lstrip()
        return json.JSONDecoder(parse_constant=_no_constant).raw_decode(text)[0]
    except json.JSONDecodeError as error:
        raise ApiError(400, _syntax_error(text, error.pos)) from None
    except RecursionError:
        raise ApiError(400, TOO_DEEP) from None


def _no_constant(name: str) -> float:
    raise ApiError(400, f"invalid character '{name[0]}' looking for beginning of value")


def _syntax_error(text: str, position: int) -> str:
    if position >= len(text) or text.count('"') % 2:
        return "unexpected EOF"
    for literal in ("null", "true", "false"):
        for at in range(1, len(literal)):
            if text.startswith(literal[:at], position) and not text.startswith(literal, position):
                found = text[position + at : position + at + 1]
                if not found:
                    return "unexpected EOF"
                if found != literal[at]:
                    expecting = f"in literal {literal} (expecting '{literal[at]}')"
                    return f"invalid character '{found}' {expecting}"
    return f"invalid character '{text[position]}' looking for beginning of value"


_JSON_KIND: Final = {"string": "string", "bool": "bool", "int": "number"}


def _check(value: Any, go_type: str, where: str) -> None:
    expected = _JSON_KIND.get(go_type, "object" if go_type.startswith("map") else "array")
    shown = kind_of(value)
    if shown == "number" and go_type == "int" and value != int(value):
        shown = f"number {value}"
    if shown != expected:
        raise ApiError(
            400, f"json: cannot unmarshal {shown} into Go struct field {where} of type {go_type}"
        )
    inner = {"[]int": "int", "map[string]string": "string"}.get(go_type)
    if inner is not None:
        for each in value.values() if isinstance(value, dict) else value:
            _check(each, inner, where)


def _check_message(message: Any) -> None:
    if not isinstance(message, dict):
        where = "Go struct field ChatRequest.messages of type api.Message"
        raise ApiError(400, f"json: cannot unmarshal {kind_of(message)} into {where}")
    for name, go_type in _MESSAGE.items():
        if message.get(name) is not None:
            _check(message[name], go_type, f"ChatRequest.messages.{name}")


class Asked(Veiled, msgspec.Struct):
    """One request for text, whichever endpoint it came by."""

    model: str
    chat: bool
    body: dict[str, Any]
    options: dict[str, Any]
    schema: dict[str, Any] | None
    keep_alive: float | None
    top_logprobs: int | None
    stream: bool

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be generated: the model is to be loaded, or unloaded."""
        said = self.body.get("messages" if self.chat else "prompt")
        return not said and "prompt_tokens" not in self.body


def parse_asked(body: bytes, *, chat: bool) -> Asked:
    """The checks that need no model, in Ollama's order."""
    fields = decode_body(body, "ChatRequest" if chat else "GenerateRequest")
    keep_alive = fields.get("keep_alive")
    seconds = None if keep_alive is None else parse_keep_alive(keep_alive)
    think = fields.get("think")
    if think is not None and think not in (True, False, "high", "medium", "low", "max", ""):
        words = '(must be "high", "medium", "low", "max", true, or false)'
        raise ApiError(400, f"invalid think value: {json.dumps(think)} {words}")
    top = fields.get("top_logprobs", 0)
    if not 0 <= top <= 20:
        raise ApiError(400, "top_logprobs must be between 0 and 20")
    if chat and not fields.get("model"):
        raise ApiError(400, "model is required")
    return Asked(
        model=fields.get("model", ""),
        chat=chat,
        body=fields,
        options=fields.get("options", {}),
        schema=None,
        keep_alive=seconds,
        top_logprobs=int(top) if fields.get("logprobs") else None,
        stream=fields.get("stream", True),
    )
