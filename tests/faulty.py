"""Every fault at every place of an answer, and what must come of it: for the tests of faults."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import psutil

from ollama_adapter import (
    Finish,
    OllamaAdapter,
    Source,
    StreamConfig,
    TokenEvent,
    TokenStream,
)
from ollama_adapter.errors import (
    AdapterError,
    DaemonError,
    Interruption,
    ProtocolError,
    ReadTimeout,
    StreamInterrupted,
)
from ollama_adapter.events import Way
from ollama_adapter.testing import PretendModel, PretendOllama
from ollama_adapter.testing.faults import CUTS, FaultKind
from tests.serving import text_of, until

LENGTH: Final = 12
MODEL: Final = PretendModel("pretend", length=LENGTH)
PROMPT: Final = "Tell me of the river."
STALL_S: Final = 0.3


class Resume(StrEnum):
    """What is asked for, and so by which way it can go on."""

    OFF = "off"
    RERUN = "rerun"
    TEXT = "text"


PLACES: Final = {
    "before_the_first": "@0",
    "after_the_first": "@1",
    "in_the_middle": f"@{LENGTH // 2}",
    "at_the_last": f"@{LENGTH - 1}",
    "before_the_last_record": "",
}
REASONS: Final = {
    FaultKind.STALL: Interruption.STALLED,
    FaultKind.ERROR_LINE: Interruption.RUNNER_DIED,
    FaultKind.NO_DONE: Interruption.NO_LAST_RECORD,
}
"""Of an interruption; all others are cuts."""


@dataclass(frozen=True, slots=True)
class Case:
    """One fault, which strikes once, at a place of one answer."""

    kind: FaultKind
    place: str
    chat: bool = False
    logprobs: bool = True
    resume: Resume = Resume.RERUN

    def __str__(self) -> str:
        endpoint = "chat" if self.chat else "generate"
        logprobs = "logprobs" if self.logprobs else "plain"
        return f"{self.kind}-{self.place}-{endpoint}-{logprobs}-{self.resume}"

    @property
    def fault(self) -> str:
        returns = "=50ms" if self.kind is FaultKind.DIE else ""
        return f"{self.kind}{PLACES[self.place]}{returns}*1"

    @property
    def at_once(self) -> bool:
        return self.place == "before_the_first"

    @property
    def reason(self) -> Interruption:
        return REASONS.get(self.kind, Interruption.CUT)


def all_cases() -> list[Case]:
    return [
        Case(*each)
        for each in itertools.product(
            sorted(CUTS), PLACES, (False, True), (True, False), tuple(Resume)
        )
    ]


def spread() -> list[Case]:
    """Each fault at each place once; the rest takes turns."""
    rest = itertools.cycle(itertools.product(tuple(Resume), (False, True), (True, False)))
    next(rest)
    return [Case(kind, place, *turn(rest)) for kind in sorted(CUTS) for place in PLACES]


def turn(rest: Iterator[tuple[Resume, bool, bool]]) -> tuple[bool, bool, Resume]:
    """The next combination. Seven further each time, which meets all twelve."""
    resume, chat, logprobs = next(itertools.islice(rest, 6, None))
    return chat, logprobs, resume


def limits(resume: Resume, kind: FaultKind | None = None) -> StreamConfig:
    """Short only where the fault is a silence: a busy machine must not look like one."""
    stalls = kind is FaultKind.STALL
    return StreamConfig(
        first_token_s=STALL_S if stalls else 60.0,
        next_token_s=STALL_S if stalls else 60.0,
        resume_tries=0 if resume is Resume.OFF else 3,
        resume_s=30.0,
        cache_bytes=4 << 10,
    )


@dataclass(slots=True)
class Told:
    """What the reader of a stream got."""

    tokens: TokenStream
    events: list[TokenEvent] = field(default_factory=list)
    error: AdapterError | None = None

    @property
    def text(self) -> str:
        return text_of(self.events)


def begin(adapter: OllamaAdapter, case: Case, prompt: str = PROMPT, **more: Any) -> TokenStream:
    """The stream of a case. Without an option nobody but the pretended model knows it is greedy."""
    options: dict[str, Any] = {"logprobs": case.logprobs} | more
    if case.resume is not Resume.TEXT:
        options["temperature"] = 0
    if case.chat:
        return adapter.chat_stream("pretend", [{"role": "user", "content": prompt}], **options)
    return adapter.generate_stream("pretend", prompt, **options)


async def read(tokens: TokenStream) -> Told:
    """To its end, whatever that is."""
    told = Told(tokens)
    try:
        async with tokens:
            async for event in tokens:
                told.events.append(event)
    except AdapterError as error:
        told.error = error
    return told


@asynccontextmanager
async def rig(*configs: StreamConfig) -> AsyncIterator[tuple[PretendOllama, list[OllamaAdapter]]]:
    """A pretended daemon, and an adapter for each of these limits."""
    async with PretendOllama(MODEL, num_parallel=8) as daemon, AsyncExitStack() as stack:
        config = daemon.config
        quick = replace(config.daemon, restart_base_s=0.02, restart_tries=1000, stable_s=0.01)
        config = replace(config, pool=replace(config.pool, watch_s=0.0))  # tasks are counted
        adapters = [
            await stack.enter_async_context(
                OllamaAdapter(replace(config, daemon=quick, stream=each))
            )
            for each in configs
        ]
        yield daemon, adapters


async def let_go(daemon: PretendOllama, files: int) -> None:
    """Nothing of ours is left at the daemon, or open."""
    await until(lambda: not daemon.connections)
    await until(lambda: psutil.Process().num_fds() <= files)


# What must hold


def judge(told: Told, whole: str) -> None:
    """Nothing lost in silence, nothing doubled, and the account says what came."""
    statistics, error = told.tokens.statistics, told.error
    assert [each.index for each in told.events] == list(range(len(told.events)))
    assert statistics.tokens == len(told.events), "the account is not what was delivered"
    if error is None and statistics.finish is Finish.REPEAT:
        assert len(told.events) > 30
        return
    assert whole.startswith(told.text), "it is not the answer"
    if error is None:
        assert statistics.finish is Finish.STOP
        assert told.text == whole, "a part of the answer was lost in silence"
        return
    assert statistics.finish is Finish.FAILED
    assert statistics.error == type(error).__name__
    assert error.hint, "the error does not say what to do"
    if isinstance(error, StreamInterrupted):
        assert error.tokens == len(told.events)
        assert error.statistics is statistics


def judge_case(told: Told, whole: str, case: Case) -> None:
    """And it is what this fault must come to."""
    judge(told, whole)
    refused = _unbegun_error(case)
    if case.kind is FaultKind.REPEAT:
        assert told.error is None
        assert told.tokens.statistics.finish is Finish.REPEAT
    elif case.kind is FaultKind.TRUNCATED_CHUNK and not PLACES[case.place]:
        assert told.error is None  # the last record came whole, and only it counts
        assert not told.tokens.statistics.seams
    elif case.kind is FaultKind.GARBAGE:
        assert type(told.error) is ProtocolError
    elif refused and (told.error is not None or case.kind is not FaultKind.DIE):
        assert isinstance(told.error, refused)
        assert not told.events
    elif case.resume is Resume.OFF:
        assert isinstance(told.error, StreamInterrupted)
        assert told.error.reason is case.reason
    else:
        assert told.error is None, told.error
        if told.tokens.statistics.cached_age_s is None:
            _judge_seam(told, case)
        else:  # the daemon was away, and an equal request had been answered
            assert refused is DaemonError
            assert {each.source for each in told.events} == {Source.CACHED}


def _unbegun_error(case: Case) -> type[AdapterError] | None:
    """Before the first token some faults are no interruptions."""
    if not case.at_once:
        return None
    if case.kind is FaultKind.DIE and case.resume is not Resume.OFF:
        return DaemonError  # unless the daemon is back before anybody looks
    return {FaultKind.STALL: ReadTimeout, FaultKind.NO_DONE: ProtocolError}.get(case.kind)


def _judge_seam(told: Told, case: Case) -> None:
    (seam,) = told.tokens.statistics.seams
    delivered = seam.index > 0
    way = (Way.RERUN if case.resume is Resume.RERUN else Way.TEXT) if delivered else Way.ANEW
    assert (seam.way, seam.reason) == (way, case.reason.value)
    last = told.events[seam.index - 1].token if delivered else ""
    if way is Way.TEXT and not last.isascii():
        pass  # the one token that is asked for may be a part of this character, and none is shown
    elif delivered and case.logprobs:
        assert seam.fidelity is not None and seam.fidelity > 0.999, seam.fidelity
    else:
        assert seam.fidelity is None
    sources = {
        Way.ANEW: {Source.LIVE},
        Way.RERUN: {Source.REPLAYED},
        Way.TEXT: {Source.RESUMED},
    }
    assert {each.source for each in told.events[: seam.index]} <= {Source.LIVE}
    assert {each.source for each in told.events[seam.index :]} <= sources[way]
    assert all(each.energy is not None for each in told.events)
