"""The values inside a request: options, durations, formats, images; pure, in Ollama's own words."""

from __future__ import annotations

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from ollama_adapter.core import durations

FOREVER: Final = math.inf
TOO_DEEP: Final = "exceeded max depth"
_INT_LIMIT: Final = (1 << 31) - 1


class ApiError(Exception):
    """An answer other than 200: `status`, and the text of its `error` field."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


OPTIONS: Final[dict[str, str]] = {
    **dict.fromkeys(
        ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "seed"), "integer"
    ),
    **dict.fromkeys(("num_predict", "top_k", "repeat_last_n", "draft_num_predict"), "integer"),
    **dict.fromkeys(("top_p", "min_p", "typical_p", "temperature", "repeat_penalty"), "float32"),
    **dict.fromkeys(("presence_penalty", "frequency_penalty"), "float32"),
    "use_mmap": "boolean",
    "stop": "array",
}


def kind_of(value: object) -> str:
    """The JSON name of a value's type."""
    if isinstance(value, bool):
        return "bool"
    for kind, name in ((str, "string"), ((int, float), "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "object"


def decode_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options we know, checked and brought to their types; others are ignored, as by Ollama."""
    known: dict[str, Any] = {}
    for name, value in options.items():
        kind = OPTIONS.get(name)
        if kind is None or value is None:
            continue
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fits = {"integer": number, "float32": number, "array": isinstance(value, list)}
        if not fits.get(kind, isinstance(value, bool)):
            raise ApiError(500, f'option "{name}" must be of type {kind}')
        if kind == "array" and not all(isinstance(each, str) for each in value):
            raise ApiError(500, f'option "{name}" must be of an array of strings')
        if kind == "integer":
            value = int(max(-_INT_LIMIT, min(_INT_LIMIT, value)))
        known[name] = value
    return known


def parse_keep_alive(value: Any) -> float:
    """Seconds to stay loaded after the last use; FOREVER for any negative value."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        name = {"bool": "bool", "array": "[]interface {}"}.get(
            kind_of(value), "map[string]interface {}"
        )
        raise ApiError(400, f"Unsupported type: '{name}'")
    if isinstance(value, str) and value.lstrip("+-") != "0":
        if durations.is_seconds(value):
            raise ApiError(400, f'time: missing unit in duration "{value}"')
        if not durations.is_duration(value):
            raise ApiError(400, f'time: invalid duration "{value}"')
    kept = durations.keep_alive_ns(value)
    return FOREVER if kept >= durations.FOREVER_NS else kept / 1e9


def parse_format(value: Any) -> dict[str, Any] | None:
    """The JSON schema that `format` asks for, or None."""
    if value is None or value == "":
        return None
    if value == "json":
        return {"type": "object"}
    try:
        if isinstance(value, dict):
            _check_schema(value, value)
            return value
        shown = json.dumps(json.dumps(value))
    except RecursionError:  # what C can still decode Python may be unable to walk through
        raise ApiError(400, TOO_DEEP) from None
    raise ApiError(500, f'invalid format: {shown}; expected "json" or a valid JSON Schema object')


_SCHEMA_TYPES: Final = {"object", "array", "string", "number", "integer", "boolean", "null"}
_LITERAL: Final = ("enum", "const", "default", "examples")


def _check_schema(schema: Any, root: Mapping[str, Any]) -> None:
    """Refuse what the engine cannot read: it would answer with free text, and say nothing."""
    if isinstance(schema, list):
        for each in schema:
            _check_schema(each, root)
    if not isinstance(schema, dict):
        return
    kinds = schema.get("type")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if kind is not None and not (isinstance(kind, str) and kind in _SCHEMA_TYPES):
            raise ApiError(400, "Unrecognized schema: a type that JSON Schema does not know")
    if not _resolves(schema.get("$ref"), root):
        raise ApiError(400, "Unrecognized schema: a $ref that leads nowhere in it")
    if not _compiles(schema.get("pattern")):
        raise ApiError(400, "Unrecognized schema: a pattern that is no regular expression")
    for name, each in schema.items():
        if name in ("properties", "$defs", "definitions") and isinstance(each, dict):
            _check_schema(list(each.values()), root)
        elif name not in _LITERAL:
            _check_schema(each, root)


def _resolves(reference: Any, root: Any) -> bool:
    if not isinstance(reference, str):
        return reference is None
    here = root
    for step in reference.removeprefix("#").split("/")[1:]:
        here = (
            here.get(step.replace("~1", "/").replace("~0", "~")) if isinstance(here, dict) else None
        )
    return reference.startswith("#") and here is not None


def _compiles(pattern: Any) -> bool:
    try:
        return pattern is None or re.compile(pattern) is not None
    except (re.error, TypeError, OverflowError, RecursionError):
        return False


def check_images(images: Sequence[Any]) -> None:
    """Refuse images: well-formed or not, no model here can see them."""
    for each in images:
        text = each if isinstance(each, str) else ""
        try:
            base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError):
            bad = re.search(r"[^A-Za-z0-9+/]", text)
            at = bad.start() if bad else len(text)
            raise ApiError(400, f"illegal base64 data at input byte {at}") from None
    if images:
        message = "Multimodal data provided, but model does not support multimodal requests."
        raise ApiError(400, nested_error(400, message, "invalid_request_error"))


def nested_error(code: int, message: str, kind: str) -> str:
    """An error of the engine as Ollama passes it on: a JSON text inside the error field."""
    body = {"error": {"code": code, "message": message, "type": kind}}
    return msgspec.json.encode(body).decode()
