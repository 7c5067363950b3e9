"""The ticker: frames on the grid, asleep when nothing happens, never holding up a token."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.config import FrameConfig
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.decipher import Decipher
from ollama_adapter.events import Frame, State, TokenEvent
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing import ManualClock

pytestmark = pytest.mark.anyio

TICK_NS = 16_666_667


def event(index: int, arrival_ns: int, energy: float = 0.5) -> TokenEvent:
    return TokenEvent("x", 0, 0, "s", "m", energy=energy, index=index, arrival_ns=arrival_ns)


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await checkpoint()


@asynccontextmanager
async def ticking() -> AsyncIterator[tuple[Decipher, ManualClock, list[Frame]]]:
    clock = ManualClock()
    decipher = Decipher(FrameConfig(), clock)
    frames: list[Frame] = []
    decipher.on_frame(frames.append)
    scope = TaskScope()
    decipher.open(scope)
    await settle()
    try:
        yield decipher, clock, frames
    finally:
        decipher.close()
        await scope.aclose()


def mapper() -> EUMapper:
    return EUMapper(profile_for())


async def test_it_sleeps_until_a_session_opens_and_again_when_all_has_drained() -> None:
    async with ticking() as (decipher, clock, frames):
        assert clock.sleepers == 0, "an idle ticker must not wait for time"
        clock.advance(10 * TICK_NS)
        await settle()
        assert frames == []
        decipher.opened("s", mapper())
        await settle()
        assert clock.sleepers == 1
        clock.advance(TICK_NS)
        await settle()
        assert [each.state for each in frames] == [State.CHARGING]
        decipher.ended("s")
        clock.advance(TICK_NS)
        await settle()
        assert frames[-1].sessions["s"].state is State.DRAINED
        assert clock.sleepers == 0
        assert "asleep" in repr(decipher)


async def test_late_ticks_are_skipped_and_counted_and_lose_no_token() -> None:
    async with ticking() as (decipher, clock, frames):
        decipher.opened("s", mapper())
        await settle()
        clock.advance(TICK_NS)
        await settle()
        for index in range(6):
            decipher.ingest(event(index, clock.now_ns()))
        clock.advance(7 * TICK_NS)  # somebody held the loop for seven ticks
        await settle()
        assert [each.frame_id for each in frames] == [0, 1, 8]
        assert frames[2].skipped == 6
        assert frames[2].new_tokens == 6
        assert frames[2].tokens_merged == 5
        assert frames[2].energy_generated == pytest.approx(3.0)


async def test_a_slow_subscriber_gets_the_newest_frame_and_the_number_it_missed() -> None:
    async with ticking() as (decipher, clock, _):
        async with decipher.subscribe() as slow:
            decipher.opened("s", mapper())
            for _ in range(3):
                await settle()
                clock.advance(TICK_NS)
            await settle()
            frame = await anext(slow)
            assert frame.frame_id == 3
            assert slow.skipped == 3
        assert [each async for each in slow] == []


async def test_a_callback_that_raises_is_reported_once_and_hurts_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with ticking() as (decipher, clock, frames):

        def broken(_: Frame) -> None:
            raise ZeroDivisionError

        decipher.on_frame(broken)
        decipher.opened("s", mapper())
        with caplog.at_level(logging.ERROR, "ollama_adapter"):
            for _ in range(3):
                await settle()
                clock.advance(TICK_NS)
            await settle()
        assert len(frames) == 4
        assert len(caplog.records) == 1


async def test_closing_ends_every_subscription() -> None:
    async with ticking() as (decipher, _, _):
        stream = decipher.subscribe()
        decipher.close()
        assert [each async for each in stream] == []
        decipher.close()


async def test_a_tick_that_raises_is_the_scopes_to_report() -> None:
    clock, scope = ManualClock(), TaskScope()
    decipher = Decipher(FrameConfig(), clock)

    def broken() -> int:
        raise ZeroDivisionError

    decipher.queue_depth = broken
    decipher.open(scope)
    await settle()
    decipher.opened("s", mapper())
    clock.advance(TICK_NS)
    await settle()
    assert clock.sleepers == 0
    with pytest.raises(ZeroDivisionError):
        await scope.aclose()
    decipher.close()


async def test_nothing_is_shown_after_it_was_closed_from_a_callback() -> None:
    async with ticking() as (decipher, clock, frames):
        decipher.on_frame(lambda _: decipher.close())
        decipher.opened("s", mapper())
        for _ in range(3):
            await settle()
            clock.advance(TICK_NS)
        assert len(frames) == 1
        assert clock.sleepers == 0


async def test_a_frame_is_that_of_the_instant_of_its_tick() -> None:
    async with ticking() as (decipher, clock, frames):
        decipher.opened("s", mapper())
        await settle()
        for tick in range(1, 4):
            clock.advance(decipher.instant_ns(tick) - clock.now_ns())
            await settle()
        assert [each.monotonic_ns for each in frames] == [decipher.instant_ns(n) for n in range(4)]


async def test_on_the_systems_clock_a_frame_is_never_before_its_tick() -> None:
    scope, frames = TaskScope(), list[Frame]()
    decipher = Decipher(FrameConfig(), SystemClock())
    async with decipher.subscribe() as stream:
        decipher.open(scope)
        decipher.opened("s", mapper())
        async with asyncio.timeout(30):
            async for frame in stream:
                frames.append(frame)
                if len(frames) == 10:
                    break
        assert all(each.monotonic_ns >= decipher.instant_ns(each.frame_id) for each in frames)
        ids = [each.frame_id for each in frames]
        assert sorted(set(ids)) == ids
    decipher.close()
    await scope.aclose()
