"""The two ways from a writer to a reader: lossless with pressure, and lossy without."""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar
from functools import partial

import pytest
from anyio.lowlevel import checkpoint
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.system.channel import Channel, Latest

pytestmark = pytest.mark.anyio
WATCHDOG_S = 30.0

operations = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["put", "put", "put_all"]), st.integers(0, 30)),
        st.tuples(st.just("flush"), st.just(0)),
        st.tuples(st.just("get"), st.just(0)),
        st.tuples(st.sampled_from(["discard", "end", "get", "get"]), st.just(0)),
    ),
    max_size=60,
)


@given(st.integers(1, 6), st.integers(1, 50), operations)
def test_items_come_out_in_order_and_pressure_is_told_in_pairs(
    max_items: int, max_bytes: int, script: list[tuple[str, int]]
) -> None:
    channel: Channel[int] = Channel(max_items, max_bytes)
    reads: deque[tuple[deque[int], int, int]] = deque()  # what is left, how many there were, bytes
    told: list[str] = []
    channel.on_full = lambda: told.append("full")
    channel.on_drained = lambda: told.append("drained")
    for number, (what, size) in enumerate(script, start=1):
        if what == "put":
            channel.put(number, size)
            reads.append((deque([number]), 1, size))
        elif what == "put_all":
            channel.put_all([number, -number], size)
            reads.append((deque([number, -number]), 2, size))
        elif what == "flush":
            channel.flush()
        elif what == "end":
            channel.end()
        elif what == "discard":
            channel.discard()
            reads.clear()
        else:
            if reads and not reads[0][0]:
                reads.popleft()
            assert channel.get_nowait() == (reads[0][0].popleft() if reads else None)
        items, held = sum(each for _, each, _ in reads), sum(each for _, _, each in reads)
        over = items >= max_items or held >= max_bytes
        low = items * 2 <= max_items and held * 2 <= max_bytes
        assert len(channel) == sum(len(each) for each, _, _ in reads)
        assert told == ["full", "drained"] * (len(told) // 2) + ["full"] * (len(told) % 2)
        assert channel.full is (len(told) % 2 == 1)
        if what in ("flush", "end"):
            assert channel.full or not over, "the writer was not told to wait"
        if what in ("get", "discard"):
            assert not (channel.full and low), "the writer was left waiting"


@pytest.mark.parametrize(("max_items", "max_bytes", "size"), [(8, 1 << 20, 1), (1 << 20, 64, 8)])
async def test_a_writer_that_heeds_the_pressure_is_bounded_and_loses_nothing(
    max_items: int, max_bytes: int, size: int
) -> None:
    channel: Channel[int] = Channel(max_items, max_bytes)
    free = asyncio.Event()
    free.set()
    channel.on_full = free.clear
    channel.on_drained = free.set
    high = 0

    async def write() -> None:
        nonlocal high
        for number in range(1, 501):
            await free.wait()
            channel.put(number, size)
            channel.flush()
            high = max(high, len(channel))
        channel.end()

    async with asyncio.TaskGroup() as group:
        _ = group.create_task(write())
        got = [item async for item in items_of(channel)]
    assert got == list(range(1, 501))
    assert high <= 8


async def items_of(channel: Channel[int]):  # type: ignore[no-untyped-def]
    while (item := await channel.get()) is not None:
        yield item


async def test_no_item_is_lost_or_doubled_however_readers_are_cancelled() -> None:
    for seed in range(30):
        assert await play(random.Random(seed)) == list(range(1, 41)), f"seed {seed}"


async def play(chance: random.Random) -> list[int]:
    """Forty items through a channel whose reader is cancelled again and again."""
    channel: Channel[int] = Channel(4, 1 << 20)
    got: list[int] = []
    written = 0
    while len(got) < 40:
        reader = asyncio.create_task(channel.get())
        for _ in range(chance.randrange(4)):
            action = chance.randrange(5)
            if action == 4 and written < 40:
                written += 1
                await by_callback(partial(channel.deliver, [written], lambda _: 1))
            elif action == 0 and written < 40:
                written += 1
                channel.put(written, 1)
                channel.flush()
            elif action == 1:
                reader.cancel()
            else:
                await checkpoint()
        if written == 40 and len(channel) and chance.random() < 0.5:
            await asyncio.wait([reader])
        reader.cancel()
        await asyncio.wait([reader])
        if not reader.cancelled():
            item = reader.result()
            assert item is not None
            got.append(item)
    assert channel.get_nowait() is None
    return got


# What is delivered, by a callback of the loop


async def test_a_reader_that_waits_has_an_item_before_the_delivery_returns() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    order: list[str] = []

    def deliver(item: str) -> None:
        order.append(f"before {item}")
        channel.deliver([item], len)
        order.append(f"after {item}")

    async with asyncio.TaskGroup() as group:
        reader = group.create_task(read_all(channel, order))
        await checkpoint()
        for item in "ab":
            await by_callback(partial(deliver, item))
        assert order == ["before a", "a", "after a", "before b", "b", "after b"]
        assert len(channel) == 0
        channel.end()
    assert reader.done()


async def test_what_a_task_delivers_waits_for_the_turn_of_the_reader() -> None:
    """One task cannot run within another."""
    channel: Channel[str] = Channel(8, 1 << 20)
    read: list[str] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(read_all(channel, read))
        await checkpoint()
        channel.deliver(["a"], len)
        assert (read, len(channel)) == ([], 1)
        await checkpoint()
        assert read == ["a"]
        channel.end()


async def test_several_items_and_items_nobody_waits_for_are_kept_in_order() -> None:
    channel: Channel[str] = Channel(3, 1 << 20)
    told: list[str] = []
    channel.on_full = lambda: told.append("full")
    await by_callback(lambda: channel.deliver(["a"], len))
    await by_callback(lambda: channel.deliver(["b", "c"], len))
    assert (len(channel), told) == (3, ["full"])
    read: list[str] = []
    async with asyncio.TaskGroup() as group:
        group.create_task(read_all(channel, read))
        await checkpoint()
        await by_callback(lambda: channel.deliver(["d", "e"], len))
        await by_callback(lambda: channel.deliver(["f"], len))
        channel.end()
    assert read == list("abcdef")


async def test_a_reader_that_fails_with_an_item_does_not_fail_its_writer() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)

    async def fail() -> None:
        await channel.get()
        raise ValueError("the reader's own")

    reader = asyncio.create_task(fail())
    await checkpoint()
    await by_callback(lambda: channel.deliver(["a"], len))
    with pytest.raises(ValueError, match="the reader's own"):
        await reader


async def test_a_reader_goes_on_in_its_own_context() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    whose = ContextVar("whose", default="the loop's")

    async def read() -> tuple[str, str | None]:
        whose.set("the reader's")
        item = await channel.get()
        current = asyncio.current_task()
        return whose.get(), f"{item} {current is reader}"

    reader = asyncio.create_task(read())
    await checkpoint()
    await by_callback(lambda: channel.deliver(["a"], len))
    assert await reader == ("the reader's", "a True")
    assert whose.get() == "the loop's"


async def test_a_reader_that_is_cancelled_just_before_leaves_the_item_for_the_next() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    reader = asyncio.create_task(channel.get())
    await checkpoint()

    def cancel_and_deliver() -> None:
        reader.cancel()
        channel.deliver(["a"], len)

    await by_callback(cancel_and_deliver)
    await asyncio.wait([reader])
    assert reader.cancelled()
    assert await channel.get() == "a"


async def test_a_reader_with_a_limit_of_time_can_be_delivered_to_after_it_passed() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    reader = asyncio.create_task(asyncio.wait_for(channel.get(), 0.001))
    with pytest.raises(TimeoutError):
        await reader
    await by_callback(lambda: channel.deliver(["a"], len))
    assert await asyncio.wait_for(channel.get(), WATCHDOG_S) == "a"


async def test_a_reader_waits_whatever_asyncio_calls_a_future_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What lets the loops of a notebook run within one another puts a Future of its own there."""
    monkeypatch.setattr(asyncio, "Future", asyncio.futures._PyFuture)  # type: ignore[attr-defined]
    channel: Channel[str] = Channel(8, 1 << 20)
    reader = asyncio.create_task(channel.get())
    await checkpoint()
    await by_callback(lambda: channel.deliver(["a"], len))
    assert await reader == "a"


async def by_callback(action: Callable[[], object]) -> None:
    """Let the loop call it, with no task around it."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def act() -> None:
        try:
            action()
        finally:
            done.set_result(None)

    asyncio.get_running_loop().call_soon(act)
    await done


async def read_all(channel: Channel[str], into: list[str]) -> None:
    while (item := await channel.get()) is not None:
        into.append(item)


async def test_what_was_put_before_the_end_comes_before_the_end() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    channel.put("a", 1)
    channel.put("b", 1)
    channel.end(ValueError("why"))
    assert [await channel.get(), await channel.get()] == ["a", "b"]
    with pytest.raises(ValueError, match="why"):
        await channel.get()
    assert await channel.get() is None, "the error was raised twice"
    assert await channel.get() is None


async def test_the_first_end_counts() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    channel.end()
    channel.end(ValueError("late"))
    assert await channel.get() is None


async def test_a_waiting_reader_is_told_of_items_and_of_the_end() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    reader = asyncio.create_task(channel.get())
    await checkpoint()
    channel.put("a", 1)
    channel.flush()
    assert await reader == "a"
    reader = asyncio.create_task(channel.get())
    await checkpoint()
    channel.end()
    assert await reader is None


async def test_discarding_frees_a_writer_that_was_told_to_wait() -> None:
    channel: Channel[str] = Channel(2, 1 << 20)
    told: list[str] = []
    channel.on_full = lambda: told.append("full")
    channel.on_drained = lambda: told.append("drained")
    for each in "abc":
        channel.put(each, 1)
    channel.flush()
    channel.discard()
    assert told == ["full", "drained"]
    channel.discard()
    assert told == ["full", "drained"]


async def test_a_second_reader_is_refused_and_the_first_goes_on() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    latest: Latest[str] = Latest()
    for source in (channel, latest):
        reader = asyncio.create_task(source.get())
        await checkpoint()
        with pytest.raises(RuntimeError, match="already being read"):
            await source.get()
        if isinstance(source, Channel):
            source.put("a", 1)
            source.flush()
        else:
            source.put("a")
        assert await reader == "a"


async def test_an_item_larger_than_the_limit_passes() -> None:
    channel: Channel[str] = Channel(8, 10)
    told: list[str] = []
    channel.on_full = lambda: told.append("full")
    channel.on_drained = lambda: told.append("drained")
    channel.put("huge", 1000)
    channel.flush()
    assert await channel.get() == "huge"
    assert told == ["full"], "it counts until its reader comes again"
    assert channel.get_nowait() is None
    assert told == ["full", "drained"]


# Latest


@given(st.lists(st.sampled_from(["put", "get"]), max_size=40))
def test_the_reader_gets_the_newest_and_the_number_of_those_it_missed(script: list[str]) -> None:
    async def play() -> None:
        latest: Latest[int] = Latest()
        got, put = 0, 0
        for what in script:
            if what == "put":
                put += 1
                latest.put(put)
            elif put > got + latest.skipped:
                assert await latest.get() == put
                got += 1
        assert put - got - latest.skipped in (0, 1)

    asyncio.run(play())


async def test_the_last_item_is_handed_out_before_the_end() -> None:
    latest: Latest[str] = Latest()
    latest.put("a")
    latest.put("b")
    latest.end()
    assert await latest.get() == "b"
    assert await latest.get() is None
    assert latest.skipped == 1


@pytest.mark.parametrize("first", ["put", "cancel"])
async def test_cancelling_a_reader_of_the_latest_loses_nothing(first: str) -> None:
    latest: Latest[str] = Latest()
    reader = asyncio.create_task(latest.get())
    await checkpoint()
    if first == "put":
        latest.put("a")
        reader.cancel()
    else:
        reader.cancel()
        latest.put("a")
    await asyncio.wait([reader])
    assert reader.cancelled()
    assert await latest.get() == "a"


async def test_a_waiting_reader_of_the_latest_hears_the_end() -> None:
    latest: Latest[str] = Latest()
    reader = asyncio.create_task(latest.get())
    await checkpoint()
    latest.end()
    assert await reader is None


def test_a_reader_whose_loop_was_closed_does_not_stop_the_writer() -> None:
    channel: Channel[str] = Channel(8, 1 << 20)
    latest: Latest[str] = Latest()
    loop = asyncio.new_event_loop()
    for wait in (channel.get, latest.get):
        reader = loop.create_task(wait())
        loop.call_soon(loop.stop)
        loop.run_forever()
        assert not reader.done()
        reader._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()
    channel.put("a", 1)
    channel.flush()
    channel.end()
    latest.put("a")
    assert len(channel) == 1
