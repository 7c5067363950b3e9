"""Timers: never early, once for every arming, of the best kind that there is, silent once closed."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest

from ollama_adapter.system.clock import SystemClock, monotonic_ns
from ollama_adapter.system.timer import FileTimer, LoopTimer, Timer, open_timer
from ollama_adapter.testing import ManualClock

pytestmark = pytest.mark.anyio
MS = 1_000_000
Make = Callable[[Callable[[], None]], Timer]


def by_the_loop(on_due: Callable[[], None]) -> Timer:
    return LoopTimer(on_due, monotonic_ns)


KINDS: list[Make] = [by_the_loop, *([FileTimer] if sys.platform == "linux" else [])]


@pytest.fixture(params=KINDS)
def make(request: pytest.FixtureRequest) -> Make:
    kind: Make = request.param
    return kind


class Bell:
    """Notes when it is rung."""

    def __init__(self, make: Make) -> None:
        self.rung: list[int] = []
        self._heard: asyncio.Future[None] | None = None
        self.timer = make(self._ring)

    def _ring(self) -> None:
        self.rung.append(monotonic_ns())
        if self._heard is not None and not self._heard.done():
            self._heard.set_result(None)

    async def heard(self) -> int:
        """When it rings next."""
        self._heard = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(30):
            await self._heard
        return self.rung[-1]


async def pass_by(deadline_ns: int) -> None:
    """Until well after an instant, and all that was due by then has run."""
    await SystemClock().sleep_until_ns(deadline_ns + 5 * MS)


async def test_it_rings_once_for_every_arming_and_never_early(make: Make) -> None:
    bell = Bell(make)
    for count, after_ns in enumerate((1, 1_000, MS, 3 * MS, 7_654_321), 1):
        deadline = monotonic_ns() + after_ns
        bell.timer.at(deadline)
        assert await bell.heard() >= deadline
        assert len(bell.rung) == count
    await pass_by(monotonic_ns())
    assert len(bell.rung) == 5
    bell.timer.close()


async def test_an_instant_that_has_passed_is_due_at_once(make: Make) -> None:
    bell = Bell(make)
    for passed in (monotonic_ns() - MS, 0, -(10**15)):
        bell.timer.at(passed)
        await bell.heard()
    bell.timer.close()


async def test_arming_replaces_the_instant_before_even_one_that_is_due(make: Make) -> None:
    bell = Bell(make)
    bell.timer.at(monotonic_ns() + 2 * MS)
    deadline = monotonic_ns() + 20 * MS
    bell.timer.at(deadline)
    assert await bell.heard() >= deadline
    first = monotonic_ns() + MS
    bell.timer.at(first)
    while monotonic_ns() < first + MS:  # due, and the loop has not looked yet
        pass
    later = monotonic_ns() + 10 * MS
    bell.timer.at(later)
    assert await bell.heard() >= later
    assert len(bell.rung) == 2
    bell.timer.close()


async def test_a_closed_one_is_silent_and_leaves_no_file(make: Make) -> None:
    files = len(os.listdir("/dev/fd")) if sys.platform == "linux" else 0
    bell = Bell(make)
    deadline = monotonic_ns() + MS
    bell.timer.at(deadline)
    bell.timer.close()
    bell.timer.close()
    await pass_by(deadline)
    assert bell.rung == []
    assert files == (len(os.listdir("/dev/fd")) if sys.platform == "linux" else 0)


async def test_linux_has_the_better_kind() -> None:
    timer = SystemClock().timer(lambda: None)
    assert isinstance(timer, FileTimer) is (sys.platform == "linux")
    timer.close()


class WithoutFiles(asyncio.SelectorEventLoop):
    """Like that of Windows."""

    def add_reader(self, *_: Any) -> None:  # type: ignore[override]
        raise NotImplementedError


def test_a_loop_that_cannot_wait_for_files_has_the_other() -> None:
    async def ring() -> None:
        bell = Bell(lambda on_due: open_timer(on_due, monotonic_ns))
        assert isinstance(bell.timer, LoopTimer)
        deadline = monotonic_ns() + MS
        bell.timer.at(deadline)
        assert await bell.heard() >= deadline
        bell.timer.close()

    with asyncio.Runner(loop_factory=WithoutFiles) as runner:
        runner.run(ring())


async def test_the_manual_clock_has_timers_that_its_owner_rings() -> None:
    clock = ManualClock(now_ns=100)
    rung: list[int] = []
    timer = clock.timer(lambda: rung.append(clock.now_ns()))
    timer.at(110)
    assert clock.sleepers == 1
    timer.at(120)
    assert clock.sleepers == 1
    for now_ns, expected in ((110, []), (125, [125])):
        clock.advance(now_ns - clock.now_ns())
        await pass_by(monotonic_ns())
        assert rung == expected
    timer.at(125)
    timer.close()
    timer.close()
    assert clock.sleepers == 0
    clock.advance(1)
    timer.at(1)
    await pass_by(monotonic_ns())
    assert rung == [125, 126]
