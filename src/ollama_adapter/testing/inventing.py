"""A small value that fits a JSON schema; pure. What it cannot fit it fills with the plainest value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ollama_adapter.testing.model import WORDS

_DEPTH: Final = 8


def invent(schema: Any, root: Mapping[str, Any], salt: int, depth: int = 0) -> Any:
    """A value for `schema`, the same for the same `salt`. `root` is where a $ref leads from."""
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return {}
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return schema["enum"][salt % len(schema["enum"])]
    if isinstance(schema.get("$ref"), str):
        return invent(_follow(schema["$ref"], root), root, salt, depth + 1)
    for name in ("anyOf", "oneOf", "allOf"):
        if schema.get(name):
            return invent(schema[name][0], root, salt, depth + 1)
    kind = schema.get("type", "object")
    kind = kind[0] if isinstance(kind, list) and kind else kind
    return _of_kind(str(kind), schema, root, salt, depth)


def _of_kind(
    kind: str, schema: Mapping[str, Any], root: Mapping[str, Any], salt: int, depth: int
) -> Any:
    if kind == "string":
        word = WORDS[salt % 40].strip()
        least = int(schema.get("minLength", 0))
        return (word + " " + word * (least // len(word) + 1))[:least] if least > len(word) else word
    if kind in ("integer", "number"):
        low = schema.get("minimum", 0)
        return max(low, min(salt % 100, schema.get("maximum", 99)))
    if kind in ("boolean", "null"):
        return bool(salt % 2) if kind == "boolean" else None
    if kind == "array":
        count = max(1, int(schema.get("minItems", 1)))
        items = schema.get("items", {"type": "string"})
        return [invent(items, root, salt + place, depth + 1) for place in range(count)]
    if "properties" not in schema:
        return {"word": WORDS[salt % 40].strip()}
    properties = schema["properties"] or {}
    return {
        name: invent(each, root, salt + place, depth + 1)
        for place, (name, each) in enumerate(properties.items())
    }


def _follow(reference: str, root: Mapping[str, Any]) -> Any:
    here: Any = root
    for step in reference.removeprefix("#").split("/")[1:]:
        here = (
            here.get(step.replace("~1", "/").replace("~0", "~"), {})
            if isinstance(here, Mapping)
            else {}
        )
    return here
