"""Those who are told of what changes: by a callback, by a stream; or once, when a daemon is there.

A stream is kept for as long as its reader keeps it.
"""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Generic, TypeVar

from ollama_adapter.errors import AdapterError
from ollama_adapter.system.channel import Channel

log = logging.getLogger("ollama_adapter")


T = TypeVar("T")


class Bulletin(Generic[T]):
    """Publishes changes; whatever a reader does with them, the writer goes on."""

    def __init__(self, subject: str) -> None:
        self._subject = subject
        self._callbacks: list[Callable[[T], None]] = []
        self._streams: weakref.WeakSet[Channel[T]] = weakref.WeakSet()
        self._waiting: set[asyncio.Future[AdapterError | None]] = set()

    def on_change(self, callback: Callable[[T], None]) -> None:
        self._callbacks.append(callback)

    def changes(self) -> AsyncIterator[T]:
        """Every change from this call on, until the end."""
        channel: Channel[T] = Channel(1 << 16, 1 << 30)
        self._streams.add(channel)
        return _read(channel)

    def publish(self, change: T) -> None:
        for channel in list(self._streams):
            channel.put(change, 0)
            channel.flush()
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:
                log.exception("a callback for %s raised", self._subject)

    def end(self) -> None:
        """No more changes."""
        for channel in list(self._streams):
            channel.end()

    def settle(self, error: AdapterError | None) -> None:
        """Tell those who wait for a daemon: there is one, or why not."""
        for waiter in self._waiting:
            if not waiter.done() and not waiter.get_loop().is_closed():
                waiter.set_result(error)

    async def until_settled(self) -> AdapterError | None:
        """Cancelling is safe."""
        waiter: asyncio.Future[AdapterError | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)


async def _read(channel: Channel[T]) -> AsyncIterator[T]:
    while (change := await channel.get()) is not None:
        yield change
