"""Tells of the pool: changes in memory to callbacks and streams, progress to whoever waits for it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from ollama_adapter.events import LoadProgress, ResidencyChange
from ollama_adapter.pool.surroundings import Progress
from ollama_adapter.system.channel import Channel

log = logging.getLogger("ollama_adapter")


class Waits(Protocol):
    """One who waits, and may want to know how far it is."""

    @property
    def on_progress(self) -> Progress | None: ...


class Group(Protocol):
    """All who wait for a model."""

    @property
    def waiters(self) -> Sequence[Waits]: ...


class Herald:
    """Whatever a listener does with what it is told, the pool goes on."""

    def __init__(self) -> None:
        self._on_change: list[Callable[[ResidencyChange], None]] = []
        self._on_progress: list[Progress] = []
        self._streams: list[Channel[ResidencyChange]] = []

    def on_change(self, callback: Callable[[ResidencyChange], None]) -> None:
        self._on_change.append(callback)

    def on_progress(self, callback: Progress) -> None:
        self._on_progress.append(callback)

    def changes(self) -> AsyncIterator[ResidencyChange]:
        """Every change from this call on, until the end."""
        channel: Channel[ResidencyChange] = Channel(1 << 16, 1 << 30)
        self._streams.append(channel)
        return _read(channel)

    def end(self) -> None:
        """No more changes. Idempotent."""
        for channel in self._streams:
            channel.end()

    def publish(self, change: ResidencyChange) -> None:
        for channel in self._streams:
            channel.put(change, 0)
            channel.flush()
        for callback in self._on_change:
            try:
                callback(change)
            except Exception:
                log.exception("a callback for changes in memory raised")

    def tell_all(self, group: Group, progress: LoadProgress) -> None:
        """Those who wait for this model, and those who listen to every load."""
        for each in group.waiters:
            self.tell(each.on_progress, progress)
        for callback in self._on_progress:
            self.tell(callback, progress)

    @staticmethod
    def tell(callback: Progress | None, progress: LoadProgress) -> None:
        """One who waits."""
        if callback is None:
            return
        try:
            callback(progress)
        except Exception:
            log.exception("a callback for the progress of a load raised")


async def _read(channel: Channel[ResidencyChange]) -> AsyncIterator[ResidencyChange]:
    while (change := await channel.get()) is not None:
        yield change
