"""Time that moves when it is told to."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ollama_adapter.system.clock import first_of

_Sleeper = tuple[int, asyncio.Future[None]]


class ManualClock:
    """Stands still until `advance`. Sleepers wake in the order of their deadlines."""

    def __init__(self, now_ns: int = 1_000_000_000, epoch_offset_ns: int = 0) -> None:
        self._now_ns = now_ns
        self.epoch_offset_ns = epoch_offset_ns
        self._sleepers: list[_Sleeper] = []

    def now_ns(self) -> int:
        return self._now_ns

    @property
    def sleepers(self) -> int:
        """How many wait for time to pass."""
        return len(self._sleepers)

    def timer(self, on_due: Callable[[], None]) -> ManualTimer:
        return ManualTimer(self, on_due)

    async def sleep_until_ns(
        self, deadline_ns: int, *, unless: asyncio.Future[None] | None = None
    ) -> None:
        if deadline_ns <= self._now_ns or (unless is not None and unless.done()):
            return
        entry = self._wait_for(deadline_ns)
        try:
            await first_of(entry[1], unless)
        finally:
            self._forget(entry)

    def _wait_for(self, deadline_ns: int) -> _Sleeper:
        entry = (deadline_ns, asyncio.get_running_loop().create_future())
        self._sleepers.append(entry)
        return entry

    def _forget(self, entry: _Sleeper) -> None:
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


class ManualTimer:
    """Calls when `advance` reaches its instant; one that is armed counts among the sleepers."""

    def __init__(self, clock: ManualClock, on_due: Callable[[], None]) -> None:
        self._clock = clock
        self._on_due = on_due
        self._armed: _Sleeper | None = None

    def at(self, deadline_ns: int) -> None:
        self.close()
        self._armed = self._clock._wait_for(deadline_ns)
        self._armed[1].add_done_callback(self._fire)
        if deadline_ns <= self._clock.now_ns():
            self._clock.advance(0)

    def close(self) -> None:
        armed, self._armed = self._armed, None
        if armed is not None:
            armed[1].remove_done_callback(self._fire)
            self._clock._forget(armed)

    def _fire(self, due: asyncio.Future[None]) -> None:
        if self._armed is not None and due is self._armed[1]:
            self._armed = None
            self._on_due()


def _deadline(entry: _Sleeper) -> int:
    return entry[0]
