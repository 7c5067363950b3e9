"""What happens in the middle of something else: another daemon, somebody else's load, a pin, a lie."""

from __future__ import annotations

import asyncio
import gc
from typing import Any, cast

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig, Reloading
from ollama_adapter.core.requests import generate_request
from ollama_adapter.errors import AdapterError, ModelNotFound
from ollama_adapter.events import Change, Substitution
from ollama_adapter.pool import Lease, ModelPool, Surroundings
from ollama_adapter.pool.catalogue import Catalogue
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing import BackgroundOllama, ManualClock, PretendOllama
from tests.pools import MIB, Rig, bounds, model, rig
from tests.serving import WATCHDOG_S, until

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
A, B, C = model("a"), model("b"), model("c")


async def load_elsewhere(run: Rig, name: str) -> None:
    """Somebody else asks for a model."""
    await run.send(run.request(name))


# Another daemon


async def test_who_waits_while_the_daemon_is_replaced_is_planned_with_what_is_known() -> None:
    async with rig(A, B, C, limits=bounds(250)) as run:
        held = await run.acquire("a")
        waiting = [asyncio.create_task(run.acquire(name)) for name in "bc"]
        await until(lambda: run.pool._line.waiting == 2)
        await run.daemon.die()
        await run.daemon.revive()
        run.pool.forget()
        for each in waiting:
            (await each).release()
        held.release()
        assert all(plan.weights_bytes for plan in run.pool.history)
        assert sum(run.daemon.most_bytes) <= 250 * MIB


async def test_a_load_that_is_under_way_when_the_last_daemon_is_forgotten_is_ours() -> None:
    clock = ManualClock()
    async with rig(A, B, limits=bounds(250), clock=clock, daemon={"load_s": 5.0}) as run:
        loading = asyncio.create_task(run.acquire("a"))
        await until(lambda: clock.sleepers)
        run.pool.forget()  # the load goes to the next one already
        clock.advance(5 * SECOND)
        with await loading as lease:
            assert lease.valid
            assert run.pool.at_work() == {"a:latest": 1}
        assert [each.foreign for each in run.pool.residents()] == [False]
        assert run.told(Change.LOADED_ELSEWHERE) == []


async def test_what_was_loaded_before_anybody_asked_for_the_next_daemon_is_ours() -> None:
    async with PretendOllama(A) as daemon, OllamaAdapter(daemon.config) as adapter:
        await adapter.pool.ensure_loaded("a")
        await daemon.die()
        await adapter.daemon.check()
        await daemon.revive()
        await adapter.daemon.ensure_running()
        assert adapter.pool.residents() == []
        await adapter.pool.ensure_loaded("a")
        await adapter.ensure_running()
        await adapter.pool.plan("a")
        assert [each.foreign for each in adapter.pool.residents()] == [False]


# Others, meanwhile


async def test_a_plan_that_had_to_wait_counts_what_others_loaded_meanwhile() -> None:
    async with rig(A, B, C, limits=bounds(450)) as run:
        run.pool._planner.pinned.add("a:latest")
        await run.generate("a")
        held = await run.acquire("b")
        waiting = asyncio.create_task(run.acquire("c", num_ctx=8192))
        await until(lambda: run.pool._line.waiting)
        run.daemon.grow("a", 300 * MIB)
        held.release()
        with pytest.raises(AdapterError, match="does not fit"):
            await waiting


async def test_a_model_that_others_load_while_it_waits_is_theirs() -> None:
    async with rig(A, B, limits=bounds(250)) as run:
        held = await run.acquire("a")
        waiting = asyncio.create_task(run.acquire("b"))
        await until(lambda: run.pool._line.waiting)
        await load_elsewhere(run, "b")
        held.release()
        with await waiting:
            assert [each.foreign for each in run.pool.residents() if each.model[0] == "b"] == [True]
        assert run.loads == ["a:latest", "b:latest"]


async def test_the_watch_looks_while_somebody_waits_for_memory() -> None:
    clock = ManualClock()
    async with rig(A, B, C, limits=bounds(450), clock=clock, watch_s=5.0) as run:
        await load_elsewhere(run, "a")
        held = await run.acquire("b")
        waiting = asyncio.create_task(run.acquire("c"))
        await until(lambda: run.pool._line.waiting)
        run.daemon.unload("a")
        await until(lambda: clock.sleepers)
        clock.advance(5 * SECOND)
        (await waiting).release()
        assert run.told()[-2:] == [
            ("a:latest", Change.UNLOADED_ELSEWHERE),
            ("c:latest", Change.LOADED),
        ]
        held.release()


# Wishes, meanwhile


async def test_a_model_that_is_pinned_while_it_loads_stays_for_good() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock, daemon={"load_s": 5.0}) as run:
        loading = asyncio.create_task(run.pool.ensure_loaded("a"))
        await until(lambda: clock.sleepers)
        pinning = asyncio.create_task(run.pool.pin("a"))
        await until(lambda: run.pool.residents() == [] and run.pool._dispatch.under_way())
        await checkpoint()
        clock.advance(5 * SECOND)
        await loading
        await pinning
        clock.advance(3600 * SECOND)
        assert run.daemon.residents == ["a:latest"]


async def test_a_load_for_one_who_has_left_is_not_undone_for_the_sake_of_the_others() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock, daemon={"load_s": 5.0}) as run:
        leaving = asyncio.create_task(run.acquire("a"))
        staying = asyncio.create_task(run.acquire("a", keep_alive=0))
        await until(lambda: clock.sleepers)
        leaving.cancel()
        await asyncio.wait([leaving])
        clock.advance(5 * SECOND)
        with await staying as lease:
            await run.send(lease.request)
        assert run.loads == ["a:latest"]


async def test_a_lease_that_ends_after_its_model_was_unpinned_does_not_keep_it_for_good() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock) as run:
        await run.pool.pin("a")
        held = await run.acquire("a")
        await run.pool.unpin("a")
        held.release()
        clock.advance(3600 * SECOND)
        assert not run.pool.is_warm("a", {})


async def test_a_model_that_is_pinned_by_another_spelling_is_loaded_anew() -> None:
    async with rig(A, limits=bounds(250)) as run:
        await run.pool.pin("a", num_ctx=512)
        await run.pool.ensure_loaded("A:Latest", reloading={"num_ctx": 256})
        assert run.pool.residents()[0].num_ctx == 256


async def test_an_advised_reload_does_not_forget_who_uses_the_model() -> None:
    async with rig(A, shared=True, reloading=Reloading.ALLOW) as run:
        held = await run.acquire("a")
        with await run.acquire("a", num_ctx=512):
            assert run.pool.at_work() == {"a:latest": 2}
        assert held.valid
        held.release()
        assert not run.pool.at_work()


# What cannot be believed


async def test_a_stream_of_changes_that_nobody_reads_any_more_is_not_kept() -> None:
    async with rig(A) as run:
        kept, left = run.pool.changes(), run.pool.changes()
        streams = run.pool._herald._bulletin._streams
        del left
        gc.collect()
        assert len(streams) == 1
        await run.generate("a")
        assert (await anext(kept)).change is Change.LOADED
        run.pool.close()
        assert [each async for each in kept] == []


async def test_what_was_asked_before_a_model_was_pulled_anew_is_not_kept() -> None:
    asked: list[str] = []

    class Client:
        async def show(self, model: str) -> dict[str, Any]:
            asked.append(model)
            return {"capabilities": [f"answer {len(asked)}"]}

        async def tags(self) -> list[dict[str, Any]]:
            if len(asked) == 1:
                catalogue.forget("m:latest")
            return []

    catalogue = Catalogue(cast(OllamaClient, Client()))
    shown = await catalogue.describe("m", "m:latest")
    assert shown == catalogue.known("m:latest") == {"capabilities": ["answer 2"]}


async def test_an_error_that_many_wait_for_has_its_hint_once() -> None:
    async def find(request: Any, error: AdapterError) -> list[Substitution]:
        error.hint = "; ".join(each for each in ("pull it", error.hint) if each)
        return []

    async with rig(A, surroundings=Surroundings(substitutes=find)) as run:
        asked = (run.acquire("missing") for _ in range(3))
        errors = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(each) for each in errors] == [ModelNotFound] * 3
        assert [str(each.hint).count("pull it") for each in errors] == [1] * 3  # type: ignore[union-attr]


# A loop that is closed


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio's own word about sockets
def test_a_loop_that_is_closed_while_a_model_is_unloaded_holds_nobody_up() -> None:
    with BackgroundOllama(A, B) as daemon:
        client = OllamaClient(dial_port(daemon.port), connect_s=5.0)
        pool = ModelPool(PoolConfig(watch_s=0.0), client, TaskScope(), SystemClock())

        async def begin() -> tuple[Lease, asyncio.Task[None]]:
            held = await pool.acquire(generate_request("a", "a prompt", {}, "5m"))
            unloading = asyncio.ensure_future(pool.unload("a"))
            await until(lambda: pool._line.waiting)
            return held, unloading

        async def go_on() -> bool:
            async with asyncio.timeout(WATCHDOG_S):
                return await pool.ensure_loaded("b")

        loop = asyncio.new_event_loop()
        held, unloading = loop.run_until_complete(begin())
        loop.close()
        unloading._log_destroy_pending = False  # type: ignore[attr-defined]
        assert asyncio.run(go_on()) is False
        held.release()
