"""Time: one monotonic clock, and a fixed offset from it to the epoch.

The offset is taken once, when this module is loaded, so that epoch times never go backwards; the
monotonic clock stands still while a machine is suspended, so that a lid closed over lunch is no stall.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from ollama_adapter.system.timer import Timer, open_timer

monotonic_ns = time.monotonic_ns
EPOCH_OFFSET_NS: Final = time.time_ns() - time.monotonic_ns()


class Clock(Protocol):
    """What a service needs of time. `testing.ManualClock` is the other one."""

    @property
    def epoch_offset_ns(self) -> int: ...

    def now_ns(self) -> int: ...

    async def sleep_until_ns(
        self, deadline_ns: int, *, unless: asyncio.Future[None] | None = None
    ) -> None: ...

    def timer(self, on_due: Callable[[], None]) -> Timer: ...


class SystemClock:
    """The machine's own."""

    epoch_offset_ns = EPOCH_OFFSET_NS

    now_ns = staticmethod(monotonic_ns)  # it is asked several times per token

    def timer(self, on_due: Callable[[], None]) -> Timer:
        """For ticks, which must not be late. Belongs to the running loop; whoever asks for it closes it."""
        return open_timer(on_due, monotonic_ns)

    async def sleep_until_ns(
        self, deadline_ns: int, *, unless: asyncio.Future[None] | None = None
    ) -> None:
        """Return at `deadline_ns` or soon after, at once when it has passed, or when `unless` is done.

        Cancelling is safe.
        """
        loop = asyncio.get_running_loop()
        while (remaining_ns := deadline_ns - monotonic_ns()) > 0:  # a loop may fire a little early
            if unless is not None and unless.done():
                return
            reached = loop.create_future()
            timer = loop.call_at(loop.time() + remaining_ns / 1e9, reach, reached)
            try:
                await first_of(reached, unless)
            finally:
                timer.cancel()


async def first_of(reached: asyncio.Future[None], unless: asyncio.Future[None] | None) -> None:
    """Until one of the two is done; no task is made for it."""
    if unless is None:
        await reached
        return

    def release(_: object) -> None:
        reach(reached)

    unless.add_done_callback(release)
    try:
        await reached
    finally:
        unless.remove_done_callback(release)


def reach(deadline: asyncio.Future[None]) -> None:
    """A timer has fired."""
    if not deadline.done():  # the sleeper may have been cancelled in this very turn of the loop
        deadline.set_result(None)
