"""The 60 Hz side: tokens in, frames out, never holding up a token.

`ingest` counts and returns; the ticker composes a frame per tick of a fixed grid and hands it to the
subscribers, each of whom has room for one: a slow one skips frames and is told how many. While no
session is active and all energy has drained, the ticker sleeps and nothing wakes the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Self

from msgspec.structs import replace

from ollama_adapter.config import FrameConfig
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.frames import FrameComposer, due_tick, next_tick, tick_instant
from ollama_adapter.events import Frame, TokenEvent
from ollama_adapter.system.channel import Latest
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.timer import Timer

log = logging.getLogger("ollama_adapter")


class FrameStream(AsyncIterator[Frame]):
    """A subscriber's frames, newest first: `skipped` counts those it was too slow for."""

    def __init__(self, leave: Callable[[FrameStream], None]) -> None:
        self._latest: Latest[Frame] = Latest()
        self._leave = leave

    @property
    def skipped(self) -> int:
        return self._latest.skipped

    def put(self, frame: Frame) -> None:
        self._latest.put(frame)

    def end(self) -> None:
        self._latest.end()

    async def __anext__(self) -> Frame:
        frame = await self._latest.get()
        if frame is None:
            raise StopAsyncIteration
        return frame

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Subscribe no longer. Idempotent."""
        self._leave(self)
        self.end()


class Decipher:
    """Owns the tick grid and the subscribers. `open` starts its ticker in a scope, `close` ends it.

    `queue_depth` tells how many tokens wait for their readers; its figure goes into every frame.
    """

    def __init__(self, config: FrameConfig, clock: Clock) -> None:
        self.queue_depth: Callable[[], int] = lambda: 0
        self._rate_hz = config.rate_hz
        self._clock = clock
        self._composer = FrameComposer()
        self._subscribers: list[FrameStream] = []
        self._callbacks: list[Callable[[Frame], None]] = []
        self._failed: set[Callable[[Frame], None]] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._timer: Timer | None = None
        self._broken: asyncio.Future[None] | None = None  # by what a tick raised
        self._start_ns = 0
        self._tick = -1
        self._asleep = False  # open, and nothing to show

    def __repr__(self) -> str:
        awake = "awake" if self._composer.active else "asleep"
        return f"<Decipher {self._rate_hz} Hz, {awake}, {len(self._subscribers)} subscribers>"

    # The token side

    def opened(self, session_id: str, mapper: EUMapper) -> None:
        """A session has been requested."""
        self._composer.open(session_id, mapper, self._clock.now_ns())
        if self._asleep:
            self._arm()

    def ingest(self, event: TokenEvent) -> None:
        """Count a token for the next frame. Never waits, never raises."""
        self._composer.ingest(event)
        if self._asleep:
            self._arm()

    def ingest_read(self, events: Sequence[TokenEvent]) -> None:
        """Count the tokens of one read of one session. Never waits, never raises."""
        self._composer.ingest_read(events)
        if self._asleep:
            self._arm()

    def interrupted(self, session_id: str) -> None:
        """A session's stream was cut and is to go on: frames show that it stalls."""
        self._composer.interrupt(session_id, self._clock.now_ns())

    def ended(self, session_id: str) -> None:
        """A session is over; frames show it until it has drained."""
        self._composer.end(session_id, self._clock.now_ns())

    # The frame side

    def subscribe(self) -> FrameStream:
        """Frames from now on: iterate it, and leave it by `async with` or `close`."""
        stream = FrameStream(self._leave)
        self._subscribers.append(stream)
        return stream

    def on_frame(self, callback: Callable[[Frame], None]) -> None:
        """Call `callback` with every frame. One that raises is reported once and goes on being called."""
        self._callbacks.append(callback)

    def instant_ns(self, tick: int) -> int:
        """When a tick was or will be due, on the monotonic clock: `frame_id` is the number of one."""
        return tick_instant(self._start_ns, tick, self._rate_hz)

    def open(self, scope: TaskScope) -> None:
        """Start the ticker."""
        if self._ticker is None:
            self._ticker = scope.spawn(self._run(), name="ticker")

    def close(self) -> None:
        """End the ticker and every subscription. Idempotent."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        if self._timer is not None:
            self._timer.close()
        for stream in list(self._subscribers):
            stream.close()

    # The ticker

    async def _run(self) -> None:
        """Owns the timer. A tick that raises ends it, and the error is the scope's to report."""
        self._broken = asyncio.get_running_loop().create_future()
        self._timer = self._clock.timer(self._on_due)
        self._start_ns, self._tick = self._clock.now_ns(), -1
        try:
            self._arm()
            await self._broken
        finally:
            self._timer.close()
            self._timer, self._asleep = None, False

    def _arm(self) -> None:
        """The next tick, or sleep until something is there to show."""
        self._asleep = not self._composer.active
        if self._timer is not None and not self._asleep:
            now_ns = self._clock.now_ns()
            self._tick = next_tick(self._start_ns, now_ns, self._rate_hz, self._tick)
            self._timer.at(self.instant_ns(self._tick))

    def _on_due(self) -> None:
        """In the loop's own callback, with no task in between: a tick is late by that much less."""
        try:
            now_ns = self._clock.now_ns()
            self._tick = due_tick(self._start_ns, now_ns, self._rate_hz, self._tick)
            self._publish(self._tick)
            self._arm()
        except Exception as crash:
            if self._broken is None or self._broken.done():
                raise
            self._broken.set_exception(crash)

    def _publish(self, tick: int) -> None:
        now_ns = self._clock.now_ns()
        epoch_ms = (self._clock.epoch_offset_ns + now_ns) // 1_000_000
        frame = self._composer.compose(tick, now_ns, epoch_ms, queue_depth=self.queue_depth())
        frame = replace(frame, processing_ns=self._clock.now_ns() - now_ns)
        for stream in self._subscribers:
            stream.put(frame)
        for callback in self._callbacks:
            self._call(callback, frame)

    def _call(self, callback: Callable[[Frame], None], frame: Frame) -> None:
        try:
            callback(frame)
        except Exception:
            if callback not in self._failed:
                self._failed.add(callback)
                log.exception("a frame callback raised; this is said once")

    def _leave(self, stream: FrameStream) -> None:
        if stream in self._subscribers:
            self._subscribers.remove(stream)
