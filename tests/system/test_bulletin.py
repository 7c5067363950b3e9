"""Those who are told, whatever becomes of one of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.system.bulletin import Bulletin
from tests.serving import until

pytestmark = pytest.mark.anyio


def abandoned(wait: Any) -> asyncio.Task[Any]:
    """One who waits in an event loop that is closed under him."""

    async def begin() -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(wait())
        for _ in range(5):
            await checkpoint()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    loop.close()
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    return task


def test_a_reader_whose_loop_was_closed_keeps_nobody_from_being_told() -> None:
    bulletin, heard = Bulletin[str]("news"), list[str]()
    stale = bulletin.changes()
    task = abandoned(lambda: anext(stale))

    async def go_on() -> list[str | None]:
        reading = bulletin.changes()
        first = asyncio.ensure_future(anext(reading, None))
        await checkpoint()
        bulletin.on_change(heard.append)
        bulletin.publish("one")
        bulletin.publish("two")
        bulletin.end()
        return [await first, await anext(reading, None), await anext(reading, None)]

    assert asyncio.run(go_on()) == ["one", "two", None]
    assert heard == ["one", "two"] and not task.done()


def test_a_waiter_whose_loop_was_closed_keeps_nobody_from_going_on() -> None:
    bulletin = Bulletin[str]("news")
    task = abandoned(bulletin.until_settled)

    async def go_on() -> object:
        waiting = asyncio.ensure_future(bulletin.until_settled())
        await until(lambda: len(bulletin._waiting) == 2)
        bulletin.settle(None)
        return await waiting

    assert asyncio.run(go_on()) is None
    assert not task.done()
