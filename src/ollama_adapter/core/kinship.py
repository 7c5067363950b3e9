"""What a model's name says of it: its line and version, its size, its quantisation; and how near two are.

Names follow habits, not rules: `llama3.2:1b`, `qwen2.5-coder:7b-instruct-q4_K_M` and
`hf.co/someone/Llama-3.2-1B-Instruct-GGUF:Q8_0` each say three things in another order. What is not
understood is a word, and words that only one of two names has tell that they were made for different things.
"""

from __future__ import annotations

import re
from enum import IntEnum
from typing import Final

import msgspec

from ollama_adapter.core.names import ModelName

_QUANTISATION: Final = re.compile(
    r"(?<![a-z0-9])(?:(?:i|t)?q([1-8])(?:_[a-z0-9]+)*|(?:b?f|fp|int|mxfp|nvfp)(4|8|16|32))(?![a-z0-9])"
)
_SIZE: Final = re.compile(r"e?(\d{1,4}(?:\.\d{1,3})?)([mbt])")
_EXPERTS: Final = re.compile(r"(\d{1,3})x(\d{1,4}(?:\.\d{1,3})?)b")
_ACTIVE: Final = re.compile(r"a\d{1,4}(?:\.\d{1,3})?b")
_LINE: Final = re.compile(r"([a-z]+)(?:(\d{1,3}(?:\.\d{1,3})*)[a-z]?)?")
_VERSION: Final = re.compile(r"v?(\d{1,3}(?:\.\d{1,3})*)")
_UNITS: Final = {"m": 1e6, "b": 1e9, "t": 1e12}
_NOISE: Final = frozenset(
    {"latest", "instruct", "chat", "it", "text", "base", "gguf", "hf", "qat", "ud", "imat", "meta"}
)
"""Words that do not set a model apart from its kin."""


class Traits(msgspec.Struct, frozen=True):
    """What a name says; "" and None for what it does not say. `parameters` is a count."""

    model: str = ""
    line: str = ""
    version: str = ""
    parameters: float | None = None
    bits: int | None = None
    words: frozenset[str] = frozenset()

    @property
    def major(self) -> str:
        return self.version.partition(".")[0]


class Kinship(IntEnum):
    """How near two models are, the nearest first."""

    SAME_MODEL = 0
    SAME_VERSION = 1
    SAME_LINE = 2
    SAME_FAMILY = 3
    STRANGERS = 4


def traits_of(name: ModelName) -> Traits:
    """What the parts of `name` say. Whatever they hold, this is an answer."""
    text = f"{name.model}-{name.tag}".lower()
    bits = bits_of(text)
    words = [each for each in re.split(r"[-_]", _QUANTISATION.sub("", text)) if each]
    line, version = _split_line(words.pop(0)) if words else ("", "")
    parameters: float | None = None
    kept: set[str] = set()
    for word in words:
        if (count := size_of(word)) is not None:
            parameters = parameters or count
        elif not version and (found := _VERSION.fullmatch(word)):
            version = found[1]
        elif word not in _NOISE and not _ACTIVE.fullmatch(word):
            kept.add(word)
    return Traits(name.model.lower(), line, version, parameters, bits, frozenset(kept))


def _split_line(word: str) -> tuple[str, str]:
    """`llama3.2` is version 3.2 of the line llama."""
    found = _LINE.fullmatch(word)
    return (found[1], found[2] or "") if found else (word, "")


def size_of(word: str) -> float | None:
    """The number of parameters that a word such as `70b`, `8x7b` or `e4b` says."""
    if found := _EXPERTS.fullmatch(word):
        return float(found[1]) * float(found[2]) * 1e9
    if found := _SIZE.fullmatch(word):
        return float(found[1]) * _UNITS[found[2]] or None
    return None


def bits_of(text: str) -> int | None:
    """The bits per weight that a quantisation such as Q4_K_M, IQ2_XXS or F16 says."""
    found = _QUANTISATION.search(text.lower())
    return int(found[1] or found[2]) if found else None


def kinship(one: Traits, other: Traits, families: tuple[str, str] = ("", "")) -> Kinship:
    """How near two models are, by their names and the `families` that their files tell ("" : not known).

    A family is also the line of a model whose own name says nothing.
    """
    if one.model and one.model == other.model:
        return Kinship.SAME_MODEL
    if one.line and one.line == other.line:
        if one.major == other.major:
            return Kinship.SAME_VERSION
        return Kinship.SAME_LINE
    first, second = (each.lower() for each in families)
    if (first or one.line) and (first or one.line) == (second or other.line):
        return Kinship.SAME_FAMILY
    lines = _split_line(first or one.line)[0], _split_line(second or other.line)[0]
    return Kinship.SAME_FAMILY if lines[0] and lines[0] == lines[1] else Kinship.STRANGERS
