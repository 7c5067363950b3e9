"""Tells of the pool: changes in memory to callbacks and streams, progress to whoever waits for it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Protocol

from ollama_adapter.events import LoadProgress, ResidencyChange
from ollama_adapter.pool.surroundings import Progress
from ollama_adapter.system.bulletin import Bulletin

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
        self._bulletin: Bulletin[ResidencyChange] = Bulletin("changes in memory")
        self._on_progress: list[Progress] = []
        self.on_change = self._bulletin.on_change
        self.changes = self._bulletin.changes
        self.publish = self._bulletin.publish
        self.end = self._bulletin.end

    def on_progress(self, callback: Progress) -> None:
        self._on_progress.append(callback)

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
