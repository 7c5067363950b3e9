"""How long a model stays in memory, and whose it is, once it is there."""

from __future__ import annotations

import pytest

from ollama_adapter.core.durations import FOREVER_NS, keep_alive_ns
from ollama_adapter.core.requests import load_request
from ollama_adapter.testing import Machine
from tests.pools import MIB, Rig, bounds, model, rig

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


# What somebody else has pinned, such as the command `pin`


async def pin_elsewhere(run: Rig, name: str) -> None:
    await run.send(load_request(name, -1, {}))


async def test_what_another_has_pinned_stays_so_after_requests_and_loads() -> None:
    async with rig(A) as run:
        await pin_elsewhere(run, "a")
        await run.generate("a")
        await run.generate("a", keep_alive="10s")
        await run.pool.ensure_loaded("a")
        assert set(told(run)) == {-1}
        (found,) = run.pool.residents()
        assert found.pinned and found.until_ns == FOREVER_NS


async def test_who_says_how_long_it_stays_ends_the_pin_of_another() -> None:
    async with rig(A) as run:
        await pin_elsewhere(run, "a")
        await run.generate("a")
        await run.pool.ensure_loaded("a", keep_alive="1h")
        await run.generate("a", keep_alive="2h")
        assert told(run)[-2:] == ["1h", "2h"]
        assert not run.pool.residents()[0].pinned


async def test_a_model_that_another_pins_while_we_use_it_is_let_stay_once_we_see_it() -> None:
    async with rig(A) as run:
        await run.generate("a")
        await pin_elsewhere(run, "a")
        await run.pool.plan("a")  # which looks at what is in memory
        await run.generate("a")
        assert told(run)[-1] == -1


async def test_it_is_pinned_also_when_it_has_to_be_loaded_anew() -> None:
    async with rig(A) as run:
        await run.generate("a")
        await pin_elsewhere(run, "a")
        await run.pool.ensure_loaded("a", reloading={"num_ctx": 256})
        assert told(run)[-1] == -1
        await run.generate("a")
        assert told(run)[-1] == -1


async def test_it_is_not_evicted() -> None:
    async with rig(A, model("b", 100), limits=bounds(250), machine=Machine(500 * MIB)) as run:
        await run.generate("a")
        await pin_elsewhere(run, "a")
        plan = await run.pool.plan("b")
        assert plan.refused and "pinned models (a:latest)" in plan.reason


async def test_unpin_takes_back_what_another_has_pinned() -> None:
    async with rig(A) as run:
        await pin_elsewhere(run, "a")
        await run.generate("a")
        await run.pool.unpin("a")
        assert told(run)[-1] == "5m" and stays_ns(run) == keep_alive_ns("5m")
        await run.generate("a")
        assert told(run)[-1] == "5m"
        assert not run.pool.residents()[0].pinned


async def test_a_keep_alive_for_ever_of_our_own_pins_nothing() -> None:
    """Else nothing could be evicted any more where pool.keep_alive is -1."""
    async with rig(
        A, model("b", 100), limits=bounds(250), machine=Machine(500 * MIB), keep_alive=-1
    ) as run:
        await run.generate("a")
        plan = await run.pool.plan("b")
        assert [each.model for each in plan.evict] == ["a:latest"]
        assert not run.pool.residents()[0].pinned
