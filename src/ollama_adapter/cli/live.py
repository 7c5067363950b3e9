"""The live view: text that flows as in any terminal, and one line below it that moves with the frames.

The cursor always rests at the end of the text. A frame erases what is below it, writes the new text,
and draws the line beneath: so the terminal itself wraps and scrolls the text, which may be longer than
the screen, survives a resize and is copied without breaks. Nothing is hidden and no mode is left on:
a killed command leaves a usable terminal. All that a frame does is one write.
"""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from typing import Any, Final

from rich.cells import get_character_cell_size
from rich.console import COLOR_SYSTEMS, Console
from rich.style import Style
from rich.text import Text

from ollama_adapter.cli.draw import Status, status_line, token_style
from ollama_adapter.cli.output import Output, harmless
from ollama_adapter.events import Channel, SessionFrame, State, TokenEvent

ERASE_BELOW: Final = "\x1b[J"
ERASE_LINE: Final = "\x1b[K"
DOWN: Final = "\x1bD"  # keeps the column, and scrolls at the bottom
SAVE: Final = "\x1b7"
RESTORE: Final = "\x1b8"
AT_ONCE: Final = "\x1b[?2026h"  # until SHOW; a terminal that does not know them ignores them
SHOW: Final = "\x1b[?2026l"
TAB: Final = 8
SILENT_S: Final = 3  # a silence worth a word


class Flow:
    """Text on its way to a terminal of a width, and the column where it ends.

    The last cell of a row is held back until more text comes: a cursor beyond it is in a state that
    moving away and back would lose.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.column = 0
        self._line: list[
            tuple[int, int]
        ] = []  # since the last newline: cells, and the column before
        self._held: list[tuple[str, Style]] = []

    def feed(self, pieces: list[tuple[str, Style]]) -> list[tuple[str, Style]]:
        """What may be written of the pieces now."""
        pieces = self._held + pieces
        self._held = []
        for text, _ in pieces:
            for character in text:
                self._step(character)
        if self.column >= self.width:
            self._hold(pieces)
        return pieces

    def rest(self) -> list[tuple[str, Style]]:
        """What was held back."""
        held, self._held = self._held, []
        return held

    def resize(self, width: int) -> None:
        """The terminal has another width, and has wrapped its text anew."""
        self.width = width
        cells, self._line, self.column = self._line, [], 0
        for each, _ in cells:
            self._advance(each)

    def _step(self, character: str) -> None:
        if character == "\n":
            self.column = 0
            self._line.clear()
        elif character == "\t":
            self._advance(max(0, min(TAB - self.column % TAB, self.width - 1 - self.column)))
        else:
            self._advance(get_character_cell_size(character))

    def _advance(self, cells: int) -> None:
        self._line.append((cells, self.column))
        if cells and self.column + cells > self.width:
            self.column = 0
        self.column += cells

    def _hold(self, pieces: list[tuple[str, Style]]) -> None:
        """Take the last character off, with what combines with it."""
        while pieces and self.column >= self.width:
            text, style = pieces.pop()
            cut = len(text) - 1
            while cut > 0 and not get_character_cell_size(text[cut]):
                cut -= 1
            for _ in text[cut:]:
                self.column = self._line.pop()[1]
            self._held.insert(0, (text[cut:], style))
            if text[:cut]:
                pieces.append((text[:cut], style))


class LiveView:
    """Draws on a terminal. `add` takes tokens, `draw` shows them, `finish` leaves only the text."""

    def __init__(self, output: Output, console: Console) -> None:
        self._output = output
        self._console = console
        self._colors = None if console.no_color else COLOR_SYSTEMS.get(console.color_system or "")
        self._ascii = not output.encoding.lower().startswith("utf")
        self._flow = Flow(console.width)
        self._pieces: list[tuple[str, Style]] = []
        self._shown = ""
        self._channel: Channel | None = None
        self._begun = False
        self._gap = 0
        self.started_ns = 0
        self._first_ns = 0
        self._last_ns = 0
        self.status = Status()

    def begin(self, words: str) -> None:
        """Say what is being waited for, before there are frames."""
        if self._output.ready:
            self._draw(Text(words, "italic #8a8a8a"))

    def add(self, event: TokenEvent) -> None:
        """A token for the next frame."""
        if event.channel is Channel.TOOL_CALLS:
            return
        text = harmless(event.token)
        if self._channel is not event.channel:
            text = text.lstrip()
            if self._channel is Channel.THINKING:
                text = "\n\n" + text
            self._channel = event.channel if text else self._channel
        if text:
            self._pieces.append((text, token_style(event)))
        status = self.status
        status.tokens += 1
        self._first_ns = self._first_ns or event.arrival_ns
        self._last_ns = event.arrival_ns
        if self._last_ns > self._first_ns:
            status.tps = (status.tokens - 1) * 1e9 / (self._last_ns - self._first_ns)

    def draw(
        self, shown: SessionFrame, now_ns: int, interruption: str = "", waits_for: str = ""
    ) -> None:
        """Draw one frame; skipped while the terminal does not take it.

        `interruption`: why no token comes, where the stream was cut and is to go on. `waits_for`: what
        its model waits for, before the first token.
        """
        if not self._output.ready:
            return
        status = self.status
        status.state, status.energy = shown.state, shown.energy
        status.waiting = not self._first_ns
        status.notice = f"interrupted, going on: {interruption}" if interruption else ""
        if status.waiting and not interruption:
            status.notice = harmless(waits_for)
        silent_s = (now_ns - self._last_ns) / 1e9
        if shown.state is State.STALLING and not interruption and silent_s >= SILENT_S:
            status.notice = f"no token for {silent_s:.0f} s"
        status.ttft_ms = max(0.0, ((self._first_ns or now_ns) - self.started_ns) / 1e6)
        self._draw(None)

    def finish(self) -> None:
        """Write what is left, remove the line, and go to the start of a new line."""
        parts = [AT_ONCE, self._erase(), self._take()]
        parts += [self._paint(*piece) for piece in self._flow.rest()]
        started = self._flow.column > 0 or parts[-1]
        self._output.write_now("".join([*parts, "\n" if started else "", SHOW]))

    def _draw(self, words: Text | None) -> None:
        size = os.get_terminal_size(self._output.fd)
        width, height = size.columns or 80, size.lines or 24
        if width != self._flow.width:
            self._flow.resize(width)
            self._shown = ""
        line = words or status_line(self.status, width - 1, ascii_only=self._ascii)
        line.truncate(width - 1)
        below = self._render(line)
        text = self._take()
        if not text and below == self._shown:
            return
        self._shown = below
        gap = self._gap = min(2, height - 1)
        parts = [AT_ONCE, self._erase(), text]
        self._begun = self._begun or bool(text)
        if gap > 0:
            parts += [DOWN * gap, f"\x1b[{gap}A", SAVE, f"\x1b[{gap}B\r", below, RESTORE]
        self._output.write_now("".join([*parts, SHOW]))

    def _erase(self) -> str:
        """What is below the cursor; line by line at first: erasing all of a screen makes history of it."""
        if self._begun:
            return ERASE_BELOW
        gap = self._gap
        return f"\r{ERASE_LINE}" + f"\n{ERASE_LINE}" * gap + f"\x1b[{gap}A" * (gap > 0)

    def _take(self) -> str:
        pieces, self._pieces = self._pieces, []
        return "".join([self._paint(*piece) for piece in self._flow.feed(pieces)])

    def _paint(self, text: str, style: Style) -> str:
        if self._colors is None:
            style = style.without_color
        return style.render(text, color_system=self._colors or COLOR_SYSTEMS["standard"])

    def _render(self, line: Text) -> str:
        with self._console.capture() as captured:
            self._console.print(line, end="", soft_wrap=True)
        return captured.get()


@contextlib.contextmanager
def quiet_keyboard() -> Iterator[None]:
    """Until the block ends, what is typed is not shown in the middle of the text; it is not lost."""
    try:
        before = termios.tcgetattr(sys.stdin)
        if os.tcgetpgrp(sys.stdin.fileno()) != os.getpgrp():
            raise OSError("in the background")  # where a change would stop us
        quiet: list[Any] = [*before]
        quiet[3] &= ~termios.ECHO
        termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    except (OSError, ValueError, AttributeError, termios.error):
        yield
        return
    try:
        yield
    finally:
        with contextlib.suppress(OSError, termios.error):
            termios.tcsetattr(sys.stdin, termios.TCSANOW, before)
