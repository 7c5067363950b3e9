"""The owner of background tasks: nothing outlives it, and no crash is lost."""

from __future__ import annotations

import asyncio

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.errors import AdapterError
from ollama_adapter.system.scope import TaskScope

pytestmark = pytest.mark.anyio


class Crash(Exception):
    """Somebody's bug."""


async def crash() -> None:
    raise Crash


async def forever(log: list[str]) -> None:
    try:
        await asyncio.Event().wait()
    finally:
        await checkpoint()
        log.append("cleaned up")


async def test_closing_cancels_what_runs_and_waits_for_it_to_clean_up() -> None:
    scope, log = TaskScope(), list[str]()
    tasks = [scope.spawn(forever(log), name=f"task {each}") for each in range(3)]
    assert [each.get_name() for each in tasks] == ["task 0", "task 1", "task 2"]
    assert repr(scope) == "<TaskScope 3 running>"
    await checkpoint()
    await scope.aclose()
    assert log == ["cleaned up"] * 3
    assert all(each.cancelled() for each in tasks)
    await scope.aclose()
    assert repr(scope) == "<TaskScope 0 running>"


async def test_a_crash_is_raised_when_the_scope_closes_and_only_once() -> None:
    scope = TaskScope()
    task = scope.spawn(crash(), name="crash")
    await asyncio.wait([task])
    with pytest.raises(Crash):
        await scope.aclose()
    await scope.aclose()


@pytest.mark.parametrize("turns", [0, 1, 2, 3])
async def test_a_crash_at_the_moment_of_closing_is_not_lost(turns: int) -> None:
    scope = TaskScope()
    _ = scope.spawn(crash(), name="crash")
    for _ in range(turns):
        await checkpoint()
    if turns == 0:
        await scope.aclose()  # cancelled before it began: it never crashed
    else:
        with pytest.raises(Crash):
            await scope.aclose()


async def test_a_crash_does_not_keep_the_others_from_being_closed() -> None:
    scope, log = TaskScope(), list[str]()
    _ = scope.spawn(forever(log), name="one")
    _ = scope.spawn(crash(), name="crash")
    _ = scope.spawn(forever(log), name="two")
    await checkpoint()
    with pytest.raises(Crash):
        await scope.aclose()
    assert log == ["cleaned up"] * 2


async def test_a_crash_while_cleaning_up_is_raised() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise Crash

    scope = TaskScope()
    _ = scope.spawn(work(), name="work")
    await checkpoint()
    with pytest.raises(Crash):
        await scope.aclose()


async def test_a_closed_scope_takes_no_work() -> None:
    scope, log = TaskScope(), list[str]()
    await scope.aclose()
    with pytest.raises(AdapterError, match="closed") as caught:
        _ = scope.spawn(forever(log), name="late")
    assert caught.value.hint
    assert log == []


async def test_work_that_spawns_while_it_is_closed_is_refused() -> None:
    scope, log = TaskScope(), list[str]()

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            with pytest.raises(AdapterError):
                _ = scope.spawn(forever(log), name="late")
            log.append("refused")

    _ = scope.spawn(work(), name="work")
    await checkpoint()
    await scope.aclose()
    assert log == ["refused"]


async def test_closing_from_two_sides_waits_in_both() -> None:
    scope, log = TaskScope(), list[str]()
    _ = scope.spawn(forever(log), name="work")
    await checkpoint()
    async with asyncio.TaskGroup() as group:
        _ = group.create_task(scope.aclose())
        _ = group.create_task(scope.aclose())
    assert log == ["cleaned up"]


async def test_closing_that_is_cancelled_can_be_done_again() -> None:
    release = asyncio.Event()

    async def stubborn() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await release.wait()

    scope = TaskScope()
    task = scope.spawn(stubborn(), name="stubborn")
    await checkpoint()
    closing = asyncio.create_task(scope.aclose())
    await checkpoint()
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert not task.done()
    release.set()
    await scope.aclose()
    assert task.done()
