"""The 60 Hz side: tokens in, frames out, never holding up a token.

`ingest` counts and returns; the ticker composes a frame per tick of a fixed grid and hands it to the
subscribers, each of whom has room for one: a slow one skips frames and is told how many. While no
session is active and all energy has drained, the ticker sleeps and nothing wakes the machine.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Self

from ollama_adapter.config import FrameConfig
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.frames import FrameComposer, due_tick, next_tick, tick_instant
from ollama_adapter.events import Frame, TokenEvent
from ollama_adapter.system.channel import Latest
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope

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
        self._wake: asyncio.Future[None] | None = None
        self._ticker: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        awake = "awake" if self._composer.active else "asleep"
        return f"<Decipher {self._rate_hz} Hz, {awake}, {len(self._subscribers)} subscribers>"

    # The token side

    def opened(self, session_id: str, mapper: EUMapper) -> None:
        """A session has been requested."""
        self._composer.open(session_id, mapper, self._clock.now_ns())
        self._awaken()

    def ingest(self, event: TokenEvent) -> None:
        """Count a token for the next frame. Never waits, never raises."""
        self._composer.ingest(event)
        if self._wake is not None:
            self._awaken()

    def ingest_read(self, events: Sequence[TokenEvent]) -> None:
        """Count the tokens of one read of one session. Never waits, never raises."""
        self._composer.ingest_read(events)
        if self._wake is not None:
            self._awaken()

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

    def open(self, scope: TaskScope) -> None:
        """Start the ticker."""
        if self._ticker is None:
            self._ticker = scope.spawn(self._run(), name="ticker")

    def close(self) -> None:
        """End the ticker and every subscription. Idempotent."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None
        for stream in list(self._subscribers):
            stream.close()

    # The ticker

    async def _run(self) -> None:
        start_ns = self._clock.now_ns()
        tick = -1
        while True:
            if not self._composer.active:
                await self._sleep()
            tick = next_tick(start_ns, self._clock.now_ns(), self._rate_hz, tick)
            await self._clock.sleep_until_ns(tick_instant(start_ns, tick, self._rate_hz))
            tick = due_tick(start_ns, self._clock.now_ns(), self._rate_hz, tick)
            self._publish(tick)

    async def _sleep(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        try:
            await self._wake
        finally:
            self._wake = None

    def _awaken(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

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
