"""Time that moves when it is told to."""

from __future__ import annotations

import asyncio

from ollama_adapter.system.clock import first_of


class ManualClock:
    """Stands still until `advance`. Sleepers wake in the order of their deadlines."""

    def __init__(self, now_ns: int = 1_000_000_000, epoch_offset_ns: int = 0) -> None:
        self._now_ns = now_ns
        self.epoch_offset_ns = epoch_offset_ns
        self._sleepers: list[tuple[int, asyncio.Future[None]]] = []

    def now_ns(self) -> int:
        return self._now_ns

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return len(self._sleepers)

    async def sleep_until_ns(
        self, deadline_ns: int, *, unless: asyncio.Future[None] | None = None
    ) -> None:
        if deadline_ns <= self._now_ns or (unless is not None and unless.done()):
            return
        entry = (deadline_ns, asyncio.get_running_loop().create_future())
        self._sleepers.append(entry)
        try:
            await first_of(entry[1], unless)
        finally:
            if entry in self._sleepers:
                self._sleepers.remove(entry)

    def advance(self, by_ns: int) -> None:
        """Let time pass, and wake whoever waited for it."""
        self._now_ns += by_ns
        due = sorted((each for each in self._sleepers if each[0] <= self._now_ns), key=_deadline)
        for entry in due:
            self._sleepers.remove(entry)
            if not entry[1].done():
                entry[1].set_result(None)


def _deadline(entry: tuple[int, asyncio.Future[None]]) -> int:
    return entry[0]
