"""How long a model stays in memory, and whose it is, once it is there."""

from __future__ import annotations

import pytest

from ollama_adapter.core.durations import FOREVER_NS, keep_alive_ns
from tests.pools import Rig, model, rig

pytestmark = pytest.mark.anyio

A = model("a", 100)


def told(run: Rig) -> list[object]:
    """The keep-alives that the daemon was told, in order."""
    bodies = [each.json() for each in run.daemon.requests if each.path == "/api/generate"]
    return [each["keep_alive"] for each in bodies]


def stays_ns(run: Rig) -> int:
    (found,) = run.pool.residents()
    return found.until_ns - found.last_used_ns


async def test_a_keep_alive_that_is_given_holds_for_a_model_in_memory() -> None:
    async with rig(A) as run:
        assert await run.pool.ensure_loaded("a") is False
        assert await run.pool.ensure_loaded("a") is True
        assert told(run) == ["5m"]
        assert await run.pool.ensure_loaded("a", keep_alive="1h") is True
        assert told(run) == ["5m", "1h"] and stays_ns(run) == keep_alive_ns("1h")
        assert await run.pool.ensure_loaded("a", keep_alive=60) is True
        assert stays_ns(run) == keep_alive_ns(60)
        assert await run.pool.ensure_loaded("a") is True
        assert await run.pool.ensure_loaded("a", keep_alive=0) is True
        assert told(run) == ["5m", "1h", 60]
        assert run.loads == ["a:latest"]


async def test_a_keep_alive_holds_for_a_model_that_answers() -> None:
    async with rig(A) as run:
        with await run.acquire("a"):
            assert await run.pool.ensure_loaded("a", keep_alive=-1) is True
            assert told(run) == ["5m", -1]
            (found,) = run.pool.residents()
            assert (found.users, found.until_ns) == (1, FOREVER_NS)


async def test_a_model_without_a_keep_alive_goes_when_it_is_unpinned() -> None:
    async with rig(A, keep_alive=0) as run:
        await run.pool.pin("a")
        assert told(run) == [-1]
        await run.pool.unpin("a")
        assert run.pool.residents() == [] and run.daemon.residents == []
