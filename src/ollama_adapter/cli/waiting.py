"""What is being waited for before the first token, in words that go on counting; and a line that shows them.

The line is on stderr, and only where that is a terminal: it is drawn over itself, never wraps, changes no
mode of the terminal, and is gone without a trace once there is something else to see.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

from rich.text import Text

from ollama_adapter.cli.draw import size
from ollama_adapter.cli.output import Output, console, harmless
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.system.clock import SystemClock

ERASE: Final = "\r\x1b[K"
EVERY_S: Final = 0.1
WORTH_A_WORD_S: Final = 0.3
"""What is over sooner would only flicker."""


class Wait:
    """How far a model is. Between two reports, time goes on."""

    def __init__(self) -> None:
        self._progress: LoadProgress | None = None
        self._since_ns = 0

    def words(self, progress: LoadProgress | None, now_ns: int) -> str:
        """What to say at this moment; "" for nothing."""
        if progress is None:
            return ""
        if progress is not self._progress:
            self._progress, self._since_ns = progress, now_ns
        elapsed_s = progress.elapsed_s + (now_ns - self._since_ns) / 1e9
        return "" if elapsed_s < WORTH_A_WORD_S else waiting_words(progress, elapsed_s)


def waiting_words(progress: LoadProgress, elapsed_s: float) -> str:
    """One step of a model's way into memory, `elapsed_s` after its beginning."""
    if progress.phase is LoadPhase.READY:
        return ""
    if progress.phase is LoadPhase.QUEUED:
        place = f", place {progress.position}" if progress.position > 1 else ""
        return f"queued for {progress.model}{place}: {elapsed_s:.0f} s"
    if progress.phase is LoadPhase.PULLING:
        if not progress.total_bytes:
            return f"pulling {progress.model}"
        share = min(100, 100 * progress.done_bytes // progress.total_bytes)
        return f"pulling {progress.model}: {share} % of {size(progress.total_bytes)}"
    expected = progress.expected_s
    likely = "" if expected is None or expected < elapsed_s else f" of about {expected:.0f} s"
    return f"loading {progress.model}: {elapsed_s:.0f} s{likely}"


class WaitingLine:
    """Shows the latest progress until `clear`. Without a terminal it does nothing."""

    def __init__(self) -> None:
        screen = console(stderr=True)
        self._output = Output(2, sys.stderr.encoding or "utf-8")
        self._shows = screen.is_terminal and not screen.is_dumb_terminal
        self._clock = SystemClock()
        self._wait = Wait()
        self._progress: LoadProgress | None = None
        self._shown = ""
        self._timer: asyncio.TimerHandle | None = None

    def note(self, progress: LoadProgress) -> None:
        """A step; from now on the line moves by itself. In the event loop only."""
        self._progress = progress
        if self._shows and self._timer is None:
            self._tick()

    def show(self, progress: LoadProgress | None) -> None:
        """Draw it as it is at this moment, unless the terminal does not take it."""
        words = self._wait.words(progress, self._clock.now_ns())
        if not self._shows or words == self._shown or not self._output.ready:
            return
        text = Text(harmless(words))
        width = os.get_terminal_size(self._output.fd).columns or 80
        text.truncate(width - 1, overflow="crop")
        self._output.write_now(ERASE + text.plain)
        self._shown = words

    def clear(self) -> None:
        """Nothing is waited for any more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._progress = None
        if self._shown:
            self._output.write_now(ERASE)
            self._shown = ""

    def _tick(self) -> None:
        self.show(self._progress)
        self._timer = asyncio.get_running_loop().call_later(EVERY_S, self._tick)
