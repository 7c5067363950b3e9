"""What the daemon lists as in memory (/api/ps): read, and what cannot be left out; pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, TypeGuard

import msgspec

from ollama_adapter.core.names import parse_name
from ollama_adapter.errors import InvalidRequest
from ollama_adapter.events import Footprint

NOTHING: Final = Footprint()
_MOST_BYTES: Final = 1 << 46  # no machine has 64 TiB of memory for one model


class Listed(msgspec.Struct, frozen=True):
    """One entry of /api/ps."""

    name: str
    key: str
    digest: str
    footprint: Footprint
    num_ctx: int
    for_ever: bool = False


def read_footprint(listed: Mapping[str, Any]) -> Footprint:
    """What an entry of /api/ps says that a model takes; nothing at all where that makes no sense.

    `size` has to be a whole number from 1 to 64 TiB, and `size_vram`, where it is said, one from 0 on: of
    `size` it is all at most. One that is none makes both unknown, and what was known before still counts.
    """
    size, vram = listed.get("size"), listed.get("size_vram", 0)
    if not _is_number(size, 1) or not _is_number(vram, 0):
        return NOTHING
    return Footprint(max(0, size - vram), min(vram, size))


def read_listing(entries: Iterable[Mapping[str, Any]]) -> list[Listed]:
    """What the daemon lists, without what is no model; a number that cannot be is 0."""
    found = []
    for each in entries:
        name = each.get("name") or each.get("model")
        try:
            parsed = parse_name(name if isinstance(name, str) else "")
        except InvalidRequest:
            continue
        digest, context = each.get("digest"), each.get("context_length")
        found.append(
            Listed(
                str(parsed),
                parsed.key,
                digest.removeprefix("sha256:") if isinstance(digest, str) else "",
                read_footprint(each),
                context if _is_number(context, 1) else 0,
                is_for_ever(each.get("expires_at")),
            )
        )
    return found


def _is_number(value: object, least: int) -> TypeGuard[int]:
    return type(value) is int and least <= value <= _MOST_BYTES


def is_for_ever(expires_at: object) -> bool:
    """What the daemon says of a model that it keeps for good: a year that nobody lives to see."""
    return isinstance(expires_at, str) and "2200" < expires_at[:4] <= "9999"
