"""Those who are told of the daemon's state: by a callback, by a stream, or once, when it is settled."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable

from ollama_adapter.errors import AdapterError
from ollama_adapter.events import DaemonChange
from ollama_adapter.system.channel import Channel

log = logging.getLogger("ollama_adapter")


class Bulletin:
    """Publishes changes; whatever a reader does with them, the writer goes on."""

    def __init__(self) -> None:
        self._callbacks: list[Callable[[DaemonChange], None]] = []
        self._streams: list[Channel[DaemonChange]] = []
        self._waiting: set[asyncio.Future[AdapterError | None]] = set()

    def on_change(self, callback: Callable[[DaemonChange], None]) -> None:
        self._callbacks.append(callback)

    def changes(self) -> AsyncIterator[DaemonChange]:
        """Every change from this call on, until the end."""
        channel: Channel[DaemonChange] = Channel(1 << 16, 1 << 30)
        self._streams.append(channel)
        return _read(channel)

    def publish(self, change: DaemonChange) -> None:
        for channel in self._streams:
            channel.put(change, 0)
            channel.flush()
        for callback in self._callbacks:
            try:
                callback(change)
            except Exception:
                log.exception("a callback for the daemon's state raised")

    def end(self) -> None:
        """No more changes."""
        for channel in self._streams:
            channel.end()

    def settle(self, error: AdapterError | None) -> None:
        """Tell those who wait for a daemon: there is one, or why not."""
        for waiter in self._waiting:
            if not waiter.done():
                waiter.set_result(error)

    async def until_settled(self) -> AdapterError | None:
        """Cancelling is safe."""
        waiter: asyncio.Future[AdapterError | None] = asyncio.get_running_loop().create_future()
        self._waiting.add(waiter)
        try:
            return await waiter
        finally:
            self._waiting.discard(waiter)


async def _read(channel: Channel[DaemonChange]) -> AsyncIterator[DaemonChange]:
    while (change := await channel.get()) is not None:
        yield change
