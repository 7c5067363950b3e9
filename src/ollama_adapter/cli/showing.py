"""Three ways to show a stream: live in a terminal, plain text, JSON lines. Each reads it to its end.

`begin` comes before the daemon is there, `end` when nothing more will be shown of this stream, in
whatever way it ended; then `account` tells how.
"""

from __future__ import annotations

import contextlib
import dataclasses
from typing import Any, Protocol

import msgspec

from ollama_adapter.cli.draw import joined, remembered, stood_in, summary
from ollama_adapter.cli.live import LiveView
from ollama_adapter.cli.output import (
    Output,
    complain,
    console,
    harmless,
    is_terminal,
    print_json,
    stdout,
)
from ollama_adapter.cli.waiting import Wait, WaitingLine
from ollama_adapter.events import Channel, Finish, Frame, Statistics, TokenEvent
from ollama_adapter.stream import TokenStream
from ollama_adapter.system.clock import SystemClock


class Way(Protocol):
    """How an answer is shown. `text` is what came of the latest one."""

    text: str

    def begin(self) -> None: ...

    def on_frame(self, frame: Frame) -> None: ...

    async def show(self, stream: TokenStream) -> None: ...

    def end(self) -> None: ...

    def account(self, statistics: Statistics) -> None: ...


class Waiting:
    """What a stream waits for before its first token, on stderr where that is a terminal."""

    def __init__(self) -> None:
        self._line = WaitingLine()
        self._stream: TokenStream | None = None

    def on_frame(self) -> None:
        if self._stream is not None:
            with contextlib.suppress(OSError):  # who reads stdout may still be there
                self._line.show(self._stream.progress)

    def begin(self, stream: TokenStream) -> None:
        self._stream = stream

    def end(self) -> None:
        """Something else is to be seen. Idempotent."""
        if self._stream is not None:
            self._stream = None
            with contextlib.suppress(OSError):
                self._line.clear()


class Plain:
    """The text of the answer and nothing else; on stderr where it went on, is an old one or another
    model's, and, where they are wanted, the statistics."""

    def __init__(self, *, statistics: bool, terminal: bool) -> None:
        self._statistics = statistics
        self._terminal = terminal
        self._output = stdout()
        self._open_line = False
        self._waiting = Waiting()
        self.text = ""

    def begin(self) -> None: ...

    def on_frame(self, frame: Frame) -> None:
        self._waiting.on_frame()

    async def show(self, stream: TokenStream) -> None:
        self.text = ""
        self._waiting.begin(stream)
        async for event in stream:
            self._waiting.end()
            if event.channel is Channel.TEXT:
                text = harmless(event.token) if self._terminal else event.token
                await self._output.write(text)
                self._open_line = not text.endswith("\n")
                self.text += event.token

    def end(self) -> None:
        self._waiting.end()
        if self._open_line:
            self._open_line = False
            self._output.write_now("\n")

    def account(self, statistics: Statistics) -> None:
        if self._statistics or statistics.finish is Finish.ABORTED:
            screen = console(stderr=not self._terminal)
            if self._terminal:
                screen.print()
            screen.print(summary(statistics))
            return
        if statistics.substitution is not None:
            complain("note", stood_in(statistics.substitution))
        for note in statistics.notes:
            complain("note", note)
        for seam in statistics.seams:
            complain("note", f"the answer was interrupted and went on: {joined(seam)}")
        if remembered(statistics):
            complain("note", f"the answer is {remembered(statistics)}")


class Lines:
    """One JSON object per event and line: tokens, then the statistics."""

    def __init__(self) -> None:
        self._output = Output(1)
        self._waiting = Waiting()
        self.text = ""

    def begin(self) -> None: ...

    def on_frame(self, frame: Frame) -> None:
        self._waiting.on_frame()

    async def show(self, stream: TokenStream) -> None:
        self.text = ""
        self._waiting.begin(stream)
        async for event in stream:
            self._waiting.end()
            if event.channel is Channel.TEXT:
                self.text += event.token
            await self._output.write(token_line(event))

    def end(self) -> None:
        self._waiting.end()

    def account(self, statistics: Statistics) -> None:
        print_json({"type": "statistics", **dataclasses.asdict(statistics)})


def token_line(event: TokenEvent) -> str:
    """A TokenEvent as one line of JSON, with all its fields."""
    fields: dict[str, Any] = {"type": "token", **msgspec.to_builtins(event)}
    return msgspec.json.encode(fields).decode() + "\n"


class Live:
    """In a terminal: the view that moves, then the account."""

    def __init__(self) -> None:
        self._console = console()
        self._output = stdout()
        self._view: LiveView | None = None
        self._gone: OSError | None = None  # why nobody can see it any more
        self._stream: TokenStream | None = None
        self._wait = Wait()
        self.text = ""

    def begin(self) -> None:
        self._view = LiveView(self._output, self._console)
        self._view.begin("starting …")

    def on_frame(self, frame: Frame) -> None:
        stream = self._stream
        shown = None if stream is None else frame.sessions.get(stream.session_id)
        if self._view is not None and stream and shown is not None and self._gone is None:
            try:
                waits_for = self._wait.words(stream.progress, frame.monotonic_ns)
                cut = stream.interruption or ""
                self._view.draw(shown, frame.monotonic_ns, cut, waits_for)
            except OSError as error:  # the terminal is gone, and nobody told us
                self._gone = error

    async def show(self, stream: TokenStream) -> None:
        view = self._view
        assert view is not None
        self._stream = stream
        view.started_ns = SystemClock().now_ns()
        self.text = ""
        async for event in stream:
            if self._gone is not None:
                raise self._gone
            if event.channel is Channel.TEXT:
                self.text += event.token
            view.add(event)

    def end(self) -> None:
        view, self._view = self._view, None
        if view is not None:
            view.finish()

    def account(self, statistics: Statistics) -> None:
        self._console.print()
        self._console.print(summary(statistics))


def choose(*, as_json: bool, statistics: bool) -> Way:
    """The way for whoever reads our output."""
    if as_json:
        return Lines()
    if not is_terminal():
        return Plain(statistics=statistics, terminal=False)
    if console().is_dumb_terminal:
        return Plain(statistics=True, terminal=True)
    return Live()
