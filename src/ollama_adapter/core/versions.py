"""What a daemon of a given version can do, so that the rest can degrade and say so."""

from __future__ import annotations

import re
from typing import Final

SINCE: Final[dict[str, tuple[int, int, int]]] = {
    "logprobs": (0, 12, 11),
    "truncate": (0, 12, 6),
    "_debug_render_only": (0, 11, 11),
}
ADVISED: Final = (0, 20, 3)  # public security advisories concern what is older
EMBEDDED_SUFFIX: Final = "-embedded"  # what our own daemon says is no version of Ollama
_NUMBERS: Final = re.compile(r"(\d{1,9})\.(\d{1,9})\.(\d{1,9})(?!\d)", re.ASCII)


def parse_version(text: str) -> tuple[int, int, int] | None:
    """The three numbers at the start of Ollama's version; None for anything else, ours included."""
    if text.endswith(EMBEDDED_SUFFIX):
        return None
    match = _NUMBERS.match(text)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def missing_features(version: str) -> tuple[str, ...]:
    """Which request fields an Ollama of this version ignores. A version we cannot read lacks none."""
    numbers = parse_version(version)
    if numbers is None or numbers == (0, 0, 0):  # 0.0.0: built from source
        return ()
    return tuple(name for name, since in SINCE.items() if numbers < since)


def outdated(version: str) -> bool:
    """Older than what security advisories concern."""
    numbers = parse_version(version)
    return numbers is not None and (0, 0, 0) < numbers < ADVISED
