"""The machine's clock: never early, never backwards, safe to cancel at any moment."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from ollama_adapter.system.clock import EPOCH_OFFSET_NS, SystemClock, monotonic_ns
from ollama_adapter.testing import ManualClock

pytestmark = pytest.mark.anyio
MS = 1_000_000


async def test_a_sleeper_wakes_at_its_deadline_and_not_before() -> None:
    clock = SystemClock()
    for after_ns in (1, 1_000, MS, 3 * MS, 7_654_321):
        deadline = clock.now_ns() + after_ns
        await clock.sleep_until_ns(deadline)
        assert clock.now_ns() >= deadline


async def test_a_deadline_that_has_passed_is_not_waited_for() -> None:
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await SystemClock().sleep_until_ns(monotonic_ns())
    await SystemClock().sleep_until_ns(0)
    await SystemClock().sleep_until_ns(-(10**30))
    assert turns == []


async def test_cancelling_in_the_very_turn_of_the_deadline_is_safe() -> None:
    """The loop runs the timer after what was ready before it: then the sleeper is gone already."""
    loop = asyncio.get_running_loop()
    complaints: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    deadline = monotonic_ns() + 250 * MS  # the sleeper has begun long before, on any machine
    sleeper = asyncio.create_task(SystemClock().sleep_until_ns(deadline))

    def hold_the_loop_beyond_the_deadline() -> None:
        while monotonic_ns() < deadline + 2 * MS:
            pass
        loop.call_soon(sleeper.cancel)

    loop.call_soon(hold_the_loop_beyond_the_deadline)
    try:
        with pytest.raises(asyncio.CancelledError):
            await sleeper
        await SystemClock().sleep_until_ns(deadline + 3 * MS)
    finally:
        loop.set_exception_handler(None)
    assert complaints == []


async def test_a_cancelled_sleeper_leaves_no_timer() -> None:
    loop = asyncio.get_running_loop()
    hour = 3600 * 1000 * MS
    sleeper = asyncio.create_task(SystemClock().sleep_until_ns(monotonic_ns() + hour))
    await SystemClock().sleep_until_ns(monotonic_ns() + 1)
    sleeper.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sleeper
    timers = [each for each in getattr(loop, "_scheduled", []) if not each.cancelled()]
    assert all(each.when() - loop.time() < 3000 for each in timers)


def test_epoch_time_is_monotonic_time_and_a_fixed_offset() -> None:
    clock = SystemClock()
    assert clock.epoch_offset_ns == EPOCH_OFFSET_NS
    before = clock.now_ns()
    assert before <= clock.now_ns()
    assert abs(clock.now_ns() + clock.epoch_offset_ns - time.time_ns()) < 3600 * 1000 * MS


async def test_the_manual_clock_wakes_its_sleepers_in_the_order_of_their_deadlines() -> None:
    clock = ManualClock(now_ns=100)
    woken: list[int] = []

    async def sleep(deadline_ns: int) -> None:
        await clock.sleep_until_ns(deadline_ns)
        woken.append(deadline_ns)

    async with asyncio.TaskGroup() as group:
        tasks = {each: group.create_task(sleep(each)) for each in (130, 110, 120, 140, 50)}
        while clock.sleepers < 4:
            await asyncio.wait([tasks[50]])
        assert woken == [50]
        clock.advance(20)
        await asyncio.wait([tasks[110], tasks[120]])
        assert woken == [50, 110, 120]
        tasks[140].cancel()
        await asyncio.wait([tasks[140]])
        assert clock.sleepers == 1
        clock.advance(100)
    assert woken == [50, 110, 120, 130]


async def test_a_sleeper_wakes_when_what_it_waits_for_is_done() -> None:
    for clock in (SystemClock(), ManualClock()):
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(done.set_result, None)
        far = clock.now_ns() + 10**15
        async with asyncio.timeout(10):
            await clock.sleep_until_ns(far, unless=done)
            await clock.sleep_until_ns(far, unless=done)  # done before
        pending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await SystemClock().sleep_until_ns(SystemClock().now_ns() + 1000, unless=pending)
        assert not pending.done()
