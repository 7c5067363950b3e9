"""Where the command writes: stdout without ever holding up the event loop, and words for people.

A pipe that nobody reads and a terminal that was stopped (Ctrl-S) make us wait on the loop, so that
tokens push back and Ctrl-C still works. A closed pipe raises BrokenPipeError. What a model, a daemon or
an argument says is data: on a terminal its control characters are shown, never obeyed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rich.console import Console, RenderableType
from rich.text import Text

CHUNK: Final = 4096  # a pipe that is ready takes this much without blocking
_PICTURES: Final = {
    **{code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t\r"},
    0x0D: None,
    0x7F: 0x2421,
    **dict.fromkeys(range(0x80, 0xA0), 0xFFFD),
    **dict.fromkeys((*range(0x202A, 0x202F), *range(0x2066, 0x206A)), 0xFFFD),
    **dict.fromkeys(range(0xD800, 0xE000), 0xFFFD),
}


def harmless(text: str) -> str:
    """`text` for a terminal: no control character but newline and tab, nothing that turns its order."""
    return text.translate(_PICTURES)


class Output:
    """A file descriptor that is written to in its own encoding."""

    def __init__(self, fd: int, encoding: str = "utf-8") -> None:
        self.fd = fd
        self.encoding = encoding

    @property
    def ready(self) -> bool:
        """It would take something now."""
        return bool(select.select([], [self.fd], [], 0)[1])

    async def write(self, text: str) -> None:
        """All of `text`. Raises BrokenPipeError. Cancelling is safe: the rest is not written."""
        data = memoryview(text.encode(self.encoding, "replace"))
        while data:
            if not self.ready:
                await self._until_ready()
            data = data[self._put(data) :]

    def write_now(self, text: str) -> None:
        """All of `text`, however long it takes."""
        data = memoryview(text.encode(self.encoding, "replace"))
        while data:
            select.select([], [self.fd], [])
            data = data[self._put(data) :]

    def _put(self, data: memoryview) -> int:
        try:
            return os.write(self.fd, data[:CHUNK])
        except BlockingIOError:
            return 0

    async def _until_ready(self) -> None:
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        loop.add_writer(self.fd, ready.set)
        try:
            await ready.wait()
        finally:
            loop.remove_writer(self.fd)


def stdout() -> Output:
    sys.stdout.flush()
    return Output(1, sys.stdout.encoding or "utf-8")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise  # noqa: PLE0704 - called where it is caught; rich would end the program itself


def console(*, stderr: bool = False) -> Console:
    """A console that wraps at a terminal's width and nowhere else."""
    made = _Console(stderr=stderr, highlight=False, markup=False, emoji=False)
    if not made.is_terminal:
        made.width = 10_000
    return made


def print_table(table: RenderableType, where: Console | None = None) -> None:
    """On stdout. What is no terminal gets no blanks after the last word of a line."""
    where = where or console()
    if where.is_terminal:
        where.print(table)
        return
    with where.capture() as held:
        where.print(table)
    where.print("\n".join(line.rstrip() for line in held.get().splitlines()), soft_wrap=True)


def is_terminal() -> bool:
    """Somebody looks at stdout."""
    return sys.stdout.isatty()


def print_json(value: Any) -> None:
    """One line of JSON on stdout; NaN and infinities are null."""
    Output(1).write_now(msgspec.json.encode(value).decode() + "\n")


def complain(kind: str, message: str, hint: str = "", details: Sequence[str] = ()) -> None:
    """A line for people on stderr, a line for each detail, and what they can do about it on the last."""
    lines = Text()
    lines.append(f"{kind}: ", "bold red" if kind == "error" else "bold yellow")
    lines.append(harmless(message))
    for detail in details:
        lines.append(f"\n  {harmless(detail)}")
    if hint:
        lines.append("\nhint: ", "bold cyan").append(harmless(hint))
    with contextlib.suppress(OSError):  # nobody reads it: no reason to fail
        console(stderr=True).print(lines, soft_wrap=True)


def asked(question: str) -> bool:
    """Somebody at the terminal says yes; the end of the input is a no. Holds up the event loop."""
    screen = console(stderr=True)
    try:
        line = screen.input(harmless(f"{question} [y/N] "), markup=False, emoji=False)
    except EOFError:
        screen.print()  # Ctrl-D leaves the cursor behind the question
        return False
    except UnicodeDecodeError:  # no word of any language
        return False
    return means_yes(line)


def means_yes(line: str) -> bool:
    return line.strip().lower() in ("y", "yes")


class Notices(logging.Handler):
    """Warnings of the package, on stderr; held back while a live view owns the screen."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._held: list[str] | None = None
        self._told: set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message in self._told:
            return
        self._told.add(message)
        if self._held is not None:
            self._held.append(message)
        else:
            complain("warning", message)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Until the block ends, warnings wait."""
        self._held = []
        try:
            yield
        finally:
            waiting, self._held = self._held, None
            for message in waiting:
                complain("warning", message)


notices: Final = Notices()
