"""The fault language: what goes wrong with an answer, where, and how often; pure.

    cold_load=8s, stall@40, rst@12*2, 503

A fault is a name, then, where it takes them, `@N` (after N tokens; without it, after the last one),
`=duration` and `*K` (only the first K times that it strikes; without it, always). A number is that HTTP
status. What each does to the wire is in `breaking`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from typing import Final, Self

from ollama_adapter.core.durations import is_duration, keep_alive_ns
from ollama_adapter.errors import ConfigError


class FaultKind(StrEnum):
    """What can go wrong."""

    COLD_LOAD = "cold_load"
    """A request finds its model gone, and the load takes that long; the client sees nothing meanwhile."""
    PROMPT_EVAL = "prompt_eval"
    """The prompt takes that long to evaluate; the client sees nothing meanwhile."""
    SLOW = "slow"
    """Each token takes that long."""
    STALL = "stall"
    """Nothing more comes: for the time given, else until the client leaves. A runner that hangs."""
    RST = "rst"
    """The connection is reset."""
    EOF = "eof"
    """The connection ends inside the answer, without a last chunk. A daemon that was killed."""
    DIE = "die"
    """The daemon goes away: every connection ends, the port is closed; for the time given, else for good."""
    ERROR_LINE = "error_line"
    """A line with an error in it, inside the 200, then a clean end. A runner that was killed."""
    NO_DONE = "no_done"
    """A clean end without the last record. A runner's error that the daemon swallowed."""
    REPEAT = "repeat"
    """The same token 31 times, then a clean end without the last record. The token-repeat guard."""
    HALF_UTF8 = "half_utf8"
    """The connection ends inside a character."""
    HALF_JSON = "half_json"
    """The connection ends inside a record."""
    TRUNCATED_CHUNK = "truncated_chunk"
    """The connection ends inside a chunk, right after a record of it."""
    GARBAGE = "garbage"
    """A line that is no JSON, then a clean end."""
    DEAF = "deaf"
    """The daemon takes connections and answers nothing, to any request. A daemon that was stopped."""
    LOAD_FAIL = "load_fail"
    """The model cannot be loaded: 500."""
    CLOUD = "cloud"
    """The models run elsewhere: so says /api/show, and prompts are refused with 403."""
    STATUS = "status"
    """The answer is an error with that status; written as its number."""


_TIMED: Final = frozenset({FaultKind.COLD_LOAD, FaultKind.PROMPT_EVAL, FaultKind.SLOW})
_TIMEABLE: Final = _TIMED | {FaultKind.STALL, FaultKind.DIE}
CUTS: Final = (
    frozenset(FaultKind)
    - _TIMED
    - {
        FaultKind.DEAF,
        FaultKind.LOAD_FAIL,
        FaultKind.CLOUD,
        FaultKind.STATUS,
    }
)
"""The faults that strike at a place in the answer."""
_TERM: Final = re.compile(
    r"(?P<name>[a-z0-9_]+)(?:@(?P<at>\d{1,7}))?(?:=(?P<length>[^@*=]+))?(?:\*(?P<times>\d{1,7}))?",
    re.ASCII,
)
_DAY_NS: Final = 86_400 * 1_000_000_000
_NAMED: Final = {each.value: each for each in FaultKind if each is not FaultKind.STATUS}
HINT: Final = (
    f"faults are {', '.join(_NAMED)} and the "
    f"statuses from 400 to 599; write them as in 'cold_load=8s, stall@40, rst@12*2, 503'"
)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault; `at` counts tokens, None is the end of the answer. ConfigError where it makes no sense."""

    kind: FaultKind
    at: int | None = None
    for_ns: int = 0
    times: int | None = None
    status: int = 0

    def __post_init__(self) -> None:
        name = self.kind.value
        if self.at is not None and self.kind not in CUTS:
            raise ConfigError(f"the fault {name} has no place in the answer: no @", hint=HINT)
        if self.for_ns and self.kind not in _TIMEABLE:
            raise ConfigError(f"the fault {name} takes no time: no =", hint=HINT)
        if not self.for_ns and self.kind in _TIMED:
            raise ConfigError(f"the fault {name} needs a time: {name}=2s", hint=HINT)
        if not 0 <= self.for_ns <= _DAY_NS:
            raise ConfigError(f"the fault {name} can take no more than a day", hint=HINT)
        if self.times is not None and self.times < 1:
            raise ConfigError(f"the fault {name} must strike at least once", hint=HINT)
        if (self.kind is FaultKind.STATUS) is not (400 <= self.status <= 599):
            raise ConfigError(f"{self.status} is not the status of an error", hint=HINT)

    def __str__(self) -> str:
        """As it is written; parsing it gives the same fault."""
        text = str(self.status) if self.kind is FaultKind.STATUS else self.kind.value
        text += f"@{self.at}" if self.at is not None else ""
        text += f"={_duration(self.for_ns)}" if self.for_ns else ""
        return text + (f"*{self.times}" if self.times is not None else "")


def _duration(ns: int) -> str:
    for unit, size in (("s", 1_000_000_000), ("ms", 1_000_000)):
        if ns % size == 0:
            return f"{ns // size}{unit}"
    return f"{ns}ns"


@dataclass(frozen=True, slots=True)
class Faults:
    """Everything that goes wrong."""

    terms: tuple[Fault, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The faults that `text` names, separated by commas. ConfigError names what is wrong."""
        words = (each.strip() for each in text.split(","))
        return cls(tuple(_parse_term(each) for each in words if each))

    def __str__(self) -> str:
        return ", ".join(map(str, self.terms))


def _parse_term(text: str) -> Fault:
    match = _TERM.fullmatch(text)
    if match is None:
        raise ConfigError(f"the fault {text!r} cannot be read", hint=HINT)
    name, at, length, times = match.group("name", "at", "length", "times")
    kind, status = _kind(name)
    return Fault(
        kind,
        at=None if at is None else int(at),
        for_ns=0 if length is None else _parse_length(name, length.strip()),
        times=None if times is None else int(times),
        status=status,
    )


def _kind(name: str) -> tuple[FaultKind, int]:
    if name.isdecimal() and len(name) == 3:
        return FaultKind.STATUS, int(name)
    if name in _NAMED:
        return _NAMED[name], 0
    raise ConfigError(f"there is no fault {name}", hint=HINT)


def _parse_length(name: str, text: str) -> int:
    if not is_duration(text) or text.startswith("-") or not 0 < keep_alive_ns(text) <= _DAY_NS:
        raise ConfigError(f"the time of the fault {name} cannot be {text!r}", hint=HINT)
    return keep_alive_ns(text)


def reason(status: int) -> str:
    """The words beside a status."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Error"


class Armed:
    """The faults that can still strike, and those that did."""

    def __init__(self, faults: Faults) -> None:
        self._terms = faults.terms
        self._left = [each.times for each in faults.terms]
        self.struck: deque[Fault] = deque(maxlen=10_000)

    def of(self, *kinds: FaultKind) -> Iterator[Fault]:
        """The faults of these kinds that are in force, in the order they were written."""
        for fault, left in zip(self._terms, self._left, strict=True):
            if left != 0 and fault.kind in kinds:
                yield fault

    def strike(self, fault: Fault) -> None:
        """`fault` happens: one time less."""
        self.struck.append(fault)
        for place, each in enumerate(self._terms):
            left = self._left[place]
            if each == fault and left:
                self._left[place] = left - 1
                break
