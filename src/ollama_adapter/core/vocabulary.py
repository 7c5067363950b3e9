"""The words of Ollama's API: which keywords a request takes, and of which type each is.

The daemon ignores a keyword that it does not know, without a word; so everything is checked here, at the
call. Keywords are all request fields and options, by their Ollama names.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from typing import Any, Final

import msgspec

from ollama_adapter.core.durations import is_duration, is_seconds
from ollama_adapter.errors import ConfigError, InvalidRequest

TOP_LOGPROBS: Final = 5  # what the energy profiles are made for
MAX_TOP_LOGPROBS: Final = 20


def _integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and _fits(value)


def _fits(value: int) -> bool:
    return -(1 << 63) <= value < 1 << 63


def _size(value: Any) -> bool:
    return _integer(value) and value > 0


def _number(value: Any) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _boolean(value: Any) -> bool:
    return isinstance(value, bool)


def _text(value: Any) -> bool:
    return isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, str) for each in value)


def _integers(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(_integer(each) for each in value)


def _images(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(map(_image, value))


def _image(value: Any) -> bool:
    if isinstance(value, bytes):
        return True
    try:
        return isinstance(value, str) and bool(base64.b64decode(value, validate=True))
    except ValueError:
        return False


def _format(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, str) and value == "json")


def _mappings(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(each, Mapping) for each in value)


def _think(value: Any) -> bool:
    if isinstance(value, str):
        return value in ("low", "medium", "high", "max")
    return isinstance(value, bool)


def _keep_alive(value: Any) -> bool:
    if isinstance(value, str):
        return is_duration(value)
    return _number(value)


def wire_keep_alive(value: str | float, name: str = "keep_alive") -> str | float:
    """What a request may carry: in its environment Ollama takes "300" for seconds, in JSON not."""
    check(name, DURATION, value)
    return float(value) if isinstance(value, str) and is_seconds(value) else value


def default_keep_alive(value: str | float) -> str | float:
    """The same, of the setting. Raises ConfigError."""
    try:
        return wire_keep_alive(value, "pool.keep_alive")
    except InvalidRequest as error:
        raise ConfigError(
            str(error), hint='set OLLAMA_KEEP_ALIVE, or pool.keep_alive = "5m" in the settings file'
        ) from None


def _top(value: Any) -> bool:
    return _integer(value) and 0 <= value <= MAX_TOP_LOGPROBS


class Kind(msgspec.Struct, frozen=True):
    """A type a keyword can have: its name for people, and its test.

    A wrong number for one that is `shown` is put into the message; elsewhere it may be a prompt.
    """

    words: str
    holds: Callable[[Any], bool]
    shown: bool = False


INTEGER: Final = Kind("an integer", _integer, shown=True)
SIZE: Final = Kind("an integer above 0", _size, shown=True)
NUMBER: Final = Kind("a finite number", _number, shown=True)
BOOLEAN: Final = Kind("True or False", _boolean, shown=True)
TEXT: Final = Kind("a string", _text)
TEXTS: Final = Kind("a list of strings", _texts)
INTEGERS: Final = Kind("a list of integers", _integers)
IMAGES: Final = Kind("a list of images (bytes, or base64 strings)", _images)
FORMAT: Final = Kind('"json" or a JSON schema (a dict)', _format)
MAPPINGS: Final = Kind("a list of dicts", _mappings)
THINK: Final = Kind('True, False, "low", "medium", "high" or "max"', _think, shown=True)
DURATION: Final = Kind(
    'seconds, or a duration such as "5m" (0: not at all, -1: for ever)', _keep_alive, shown=True
)
TOP: Final = Kind(f"an integer from 0 to {MAX_TOP_LOGPROBS}", _top, shown=True)
OBJECT: Final = Kind("a dict", lambda value: isinstance(value, Mapping))

COMMON: Final[dict[str, Kind]] = {
    "format": FORMAT,
    "keep_alive": DURATION,
    "think": THINK,
    "truncate": BOOLEAN,
    "shift": BOOLEAN,
    "logprobs": BOOLEAN,
    "top_logprobs": TOP,
    "_debug_render_only": BOOLEAN,
    "options": OBJECT,
}
GENERATE: Final[dict[str, Kind]] = COMMON | {
    "suffix": TEXT,
    "system": TEXT,
    "template": TEXT,
    "context": INTEGERS,
    "raw": BOOLEAN,
    "images": IMAGES,
    "prompt_tokens": INTEGERS,  # the embedded daemon only
}
CHAT: Final[dict[str, Kind]] = COMMON | {"tools": MAPPINGS}
EMBED: Final[dict[str, Kind]] = {
    "keep_alive": DURATION,
    "truncate": BOOLEAN,
    "dimensions": INTEGER,
    "options": OBJECT,
}
OPTIONS: Final[dict[str, Kind]] = {
    "num_keep": INTEGER,
    "seed": INTEGER,
    "num_predict": INTEGER,
    "top_k": INTEGER,
    "top_p": NUMBER,
    "min_p": NUMBER,
    "typical_p": NUMBER,
    "repeat_last_n": INTEGER,
    "temperature": NUMBER,
    "repeat_penalty": NUMBER,
    "presence_penalty": NUMBER,
    "frequency_penalty": NUMBER,
    "stop": TEXTS,
    "num_ctx": SIZE,
    "num_batch": INTEGER,
    "num_gpu": INTEGER,
    "main_gpu": INTEGER,
    "use_mmap": BOOLEAN,
    "num_thread": INTEGER,
    "draft_num_predict": INTEGER,
}
RELOADING: Final = (
    "num_ctx",
    "num_batch",
    "num_thread",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "draft_num_predict",
)


def split_fields(vocabulary: Mapping[str, Kind], keywords: Mapping[str, Any]) -> dict[str, Any]:
    """`keywords` split into the request's fields and its `options`, each checked."""
    fields: dict[str, Any] = {}
    options: dict[str, Any] = {}
    for name, value in keywords.items():
        if name in vocabulary:
            check(name, vocabulary[name], value)
            fields[name] = value
        elif name in OPTIONS:
            check(name, OPTIONS[name], value)
            options[name] = value
        else:
            raise unknown("keyword", name, (*vocabulary, *OPTIONS))
    for name, value in fields.pop("options", {}).items():
        if name not in OPTIONS:
            raise unknown("option", name, OPTIONS)
        if name in options:
            raise InvalidRequest(f"{name} is given twice", hint="as a keyword or in options, once")
        check(name, OPTIONS[name], value)
        options[name] = value
    return fields | ({"options": options} if options else {})


def check(name: str, kind: Kind, value: Any) -> None:
    """Raises InvalidRequest, which names the keyword and never shows what may be a prompt."""
    if not kind.holds(value):
        found = repr(value) if kind.shown and _is_short(value) else kind_of(value)
        if kind is DURATION and isinstance(value, str):
            found = "this text"
        elif type(value) is int and kind in (INTEGER, SIZE) and not _fits(value):
            found = "one that takes more than 64 bits"
        raise InvalidRequest(f"{name} must be {kind.words}, not {found}")


def _is_short(value: Any) -> bool:
    """A number that is not too long to be read (or, for Python, to be written)."""
    return type(value) in (bool, float) or (type(value) is int and value.bit_length() <= 64)


def kind_of(value: Any) -> str:
    """The type of a value: the value itself might be part of a prompt."""
    return "None" if value is None else type(value).__name__


def unknown(what: str, name: object, known: Iterable[str]) -> InvalidRequest:
    """The error of a name that is in no vocabulary; the hint has the nearest, or all."""
    if not isinstance(name, str):
        return InvalidRequest(f"the name of an {what} must be a string, not {kind_of(name)}")
    near = [each for each in known if each.replace("_", "") == name.replace("_", "").lower()]
    hint = f"did you mean {near[0]}?" if near else f"known are: {', '.join(sorted(known))}"
    return InvalidRequest(f"there is no {what} {name}", hint=hint)
