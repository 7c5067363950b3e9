"""A text of the daemon's without what it shares with a request, so that an error may show it; pure."""

from __future__ import annotations

import re
from typing import Any, Final

import msgspec

SHARED_RUN: Final = 12  # so many characters in common with a request are part of it
SHORTEST: Final = 4  # a shorter string of a request says nothing, and is part of any sentence


def without_shared(text: str, private: bytes) -> str:
    """`text` with an ellipsis for all that it shares with `private`, a request's body.

    That is every run of SHARED_RUN characters, and every shorter string of the request as a whole.
    The model's name and the API's own words are not private.
    """
    strings = _strings(json_object(private)) or {private.decode("utf-8", "replace")}
    quoted = {msgspec.json.encode(each).decode()[1:-1] for each in strings}
    haystack = _near(text, "\n\0".join(strings | quoted))
    shared = bytearray(len(text))
    for start in range(len(text) - SHARED_RUN + 1):
        if text[start : start + SHARED_RUN] in haystack:
            shared[start : start + SHARED_RUN] = b"\1" * SHARED_RUN
    for each in strings | quoted:
        if SHORTEST <= len(each) < SHARED_RUN:
            for match in re.finditer(re.escape(each), text):
                shared[match.start() : match.end()] = b"\1" * len(each)
    marked = "".join("\0" if hide else char for char, hide in zip(text, shared, strict=True))
    return re.sub("\0+", "…", marked)


def _near(text: str, haystack: str) -> str:
    """The parts of `haystack` where a run of it may stand in `text`: a prompt may be of many megabytes.

    Such a run holds one of the haystack's blocks of half its length.
    """
    half = SHARED_RUN // 2
    grams = {text[at : at + half] for at in range(len(text) - half + 1)}
    blocks = range(0, len(haystack), half)
    hits = {
        haystack[max(0, at - half) : at + 2 * half]
        for at in blocks
        if haystack[at : at + half] in grams
    }
    return "\n\0".join(hits)


def _strings(request: Any) -> set[str]:
    """Every string that a request's body holds, however deep, but for the API's own words."""
    found: set[str] = set()
    waiting = [(request, True)]  # a value, and whether its keys are the API's
    while waiting:
        value, ours = waiting.pop()
        if isinstance(value, str):
            found.add(value)
        elif isinstance(value, list):
            waiting += [(each, False) for each in value]
        elif isinstance(value, dict):
            found |= set() if ours else set(value)
            waiting += [
                (each, ours and name == "options")
                for name, each in value.items()
                if not (ours and name in ("model", "keep_alive"))
            ]
    return found


def json_object(data: bytes) -> dict[str, Any]:
    """What `data` says, where it is a JSON object; else an empty one."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return {}
    return value if isinstance(value, dict) else {}
