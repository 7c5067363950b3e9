"""Sessions in every phase, and every way to end one: for the tests of aborting."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from ollama_adapter import OllamaAdapter, TokenEvent, TokenStream
from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
)
from tests.serving import until

BUFFER_TOKENS: Final = 8
LOADED: Final = "loaded"
SLOW: Final = "slow"
"""A model whose load waits for `PhaseDaemon.load`."""
PHASES: Final = (
    "not started",
    "loading",
    "loading with others",
    "queued",
    "prompt evaluation",
    "decoding",
    "waiting for a token",
    "held up by its reader",
    "over, but not read",
)
UNSENT: Final = ("not started", "loading", "loading with others")
WAYS: Final = ("stop_generation", "abort", "stop", "aclose", "leave", "cancel")


class PhaseDaemon(ScriptedDaemon):
    """What a prompt says is what it does: `silent`, `flood`, `some` tokens and no end, or `all`."""

    def __init__(self) -> None:
        super().__init__(self._say)
        self.load = asyncio.Event()
        self.never = asyncio.Event()

    def _pieces(self, request: ScriptedRequest) -> Any:
        pieces = super()._pieces(request)
        if request.path == "/api/generate" and request.json()["model"].startswith(SLOW):
            return [self.load, *pieces]
        return pieces

    def _say(self, request: ScriptedRequest) -> Iterator[Piece]:
        what = request.json().get("prompt", "silent")
        if what != "silent":
            yield STREAM_HEAD
            yield b"".join(chunk({"response": each, "done": False}) for each in "abc")
        if what == "flood":
            yield b"".join([chunk({"response": "x" * 1000, "done": False})] * BUFFER_TOKENS)
        if what == "all":
            yield b"".join(map(chunk, answer(["d"]))) + STREAM_END
        else:
            yield self.never


@dataclass
class Case:
    """A session that has been brought into a phase, with the task that reads it."""

    adapter: OllamaAdapter
    daemon: PhaseDaemon
    group: asyncio.TaskGroup
    stream: TokenStream
    reader: asyncio.Task[None] = field(init=False)
    read: list[TokenEvent] = field(default_factory=list)
    others: list[TokenStream] = field(default_factory=list)
    entered: bool = False

    @property
    def session(self) -> Any:
        return self.stream._session

    def consume(self, take: int) -> None:
        """Read so many tokens, or all (-1), in a task; then hold the stream until it is ended."""
        self.reader = self.group.create_task(self._consume(take))

    async def _consume(self, take: int) -> None:
        async with self.stream:
            self.entered = True
            while len(self.read) != take:
                try:
                    self.read.append(await anext(self.stream))
                except StopAsyncIteration:
                    return
            await self.daemon.never.wait()

    def begin(self, way: str) -> asyncio.Task[Any]:
        """Begin to end it. Whatever is called from now on in the next pass of the loop comes after."""
        if way == "cancel":
            self.reader.cancel()
            return self.reader
        ending: dict[str, Callable[[], Awaitable[Any]]] = {
            "stop_generation": lambda: self.adapter.stop_generation(self.stream.session_id),
            "abort": lambda: self.adapter.abort(self.stream.session_id),
            "stop": self.stream.stop,
            "aclose": self.stream.aclose,
            "leave": self._leave,
        }

        async def end() -> Any:
            return await ending[way]()

        return self.group.create_task(end())

    async def _leave(self) -> None:
        async with self.stream:
            pass

    async def finish(self) -> None:
        """Let go of the reader, and of those that only stood by."""
        self.reader.cancel()
        await asyncio.wait([self.reader])
        for each in self.others:
            await each.stop()


async def bring(
    phase: str, adapter: OllamaAdapter, daemon: PhaseDaemon, group: asyncio.TaskGroup
) -> Case:
    """A session in a phase of PHASES."""
    model = SLOW if phase.startswith("loading") else LOADED
    says = {
        "queued": "silent",
        "prompt evaluation": "silent",
        "held up by its reader": "flood",
        "over, but not read": "all",
    }
    case = Case(adapter, daemon, group, adapter.generate_stream(model, says.get(phase, "some")))
    session = case.session
    if phase == "queued":
        case.others.append(adapter.generate_stream(model, "some"))
        await anext(case.others[0])
    takes = {"not started": 0, "decoding": 1, "held up by its reader": 1, "over, but not read": 1}
    case.consume(takes.get(phase, -1))
    if phase == "loading with others":
        case.others.append(adapter.generate_stream(model, "some"))
        waiting = group.create_task(anext(case.others[0], None))
        await until(lambda: case.others[0]._session.started and not waiting.done())
    reached: dict[str, Callable[[], object]] = {
        "not started": lambda: case.entered,
        "loading": lambda: adapter.pool.is_loading(SLOW),
        "loading with others": lambda: adapter.pool.is_loading(SLOW),
        "queued": lambda: session.exchange,
        "prompt evaluation": lambda: session.exchange,
        "decoding": lambda: len(case.read) == 1,
        "waiting for a token": lambda: len(case.read) == 3,
        "held up by its reader": lambda: session.paused and len(case.read) == 1,
        "over, but not read": lambda: session.ended and len(case.read) == 1,
    }
    await until(reached[phase])
    return case
