"""Who waits for a model, in which order, for how long; and what an abort, a fault or a death leaves behind."""

from __future__ import annotations

import asyncio
import typing
from collections.abc import Callable
from time import perf_counter_ns
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.config import Pulling, Reloading
from ollama_adapter.core.requests import embed_request
from ollama_adapter.errors import (
    AdapterError,
    BudgetExceeded,
    ConnectFailed,
    ConnectionLost,
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    PullFailed,
    ServerBusy,
)
from ollama_adapter.events import Change, LoadPhase, LoadProgress, Substitution
from ollama_adapter.pool import Lease, Surroundings
from ollama_adapter.pool.surroundings import Progress
from ollama_adapter.testing import ManualClock, PretendModel
from tests.pools import MIB, Rig, bounds, model, rig
from tests.serving import until

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
A, B, C, D = model("a"), model("b"), model("c"), model("d")
ONE = bounds(250)
"""Room for one of them."""


def start(run: Rig, name: str, **keywords: Any) -> asyncio.Task[Lease]:
    return asyncio.create_task(run.acquire(name, **keywords))


async def settled(*tasks: asyncio.Task[Lease]) -> None:
    await asyncio.wait(tasks)


def at_rest(run: Rig) -> None:
    """Nothing is held, nobody waits, and what is believed is what is there."""
    pool = run.pool
    assert not pool.at_work().total()
    assert not pool._line.errands and not pool._line._waiting
    assert not any(each.users for each in pool.residents())
    assert {each.model for each in pool.residents()} == set(run.daemon.residents)
    assert pool._admission._turn is None


# One flight


@pytest.mark.timeout(0)
async def test_aborts_during_a_load_leave_exactly_one_load(
    measured: Callable[..., None], scaled: Callable[[int], int]
) -> None:
    aborts, clock = 100, ManualClock()
    for _ in range(scaled(100)):
        async with rig(A, clock=clock, daemon={"load_s": 5.0}) as run:
            patient = start(run, "a")
            leaving = [start(run, "a") for _ in range(aborts)]
            await until(lambda: clock.sleepers)
            for each in leaving:
                each.cancel()
                await checkpoint()
            await settled(*leaving)
            clock.advance(5 * SECOND)
            (await patient).release()
            asked = [each for each in run.daemon.requests if each.path == "/api/generate"]
            assert len(asked) == 1
            assert run.loads == ["a:latest"]
            at_rest(run)
    measured("loads of a model during which 100 requests were aborted", 1, "= 1", "loads", aborts)


async def test_a_load_that_nobody_waits_for_is_given_up_and_begun_anew() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock, daemon={"load_s": 5.0}) as run:
        leaving = [start(run, "a") for _ in range(3)]
        await until(lambda: clock.sleepers)
        for each in leaving:
            each.cancel()
        await settled(*leaving)
        await run.daemon.until(lambda: run.daemon.dropped == 1)
        coming = start(run, "a")
        await until(lambda: clock.sleepers)
        clock.advance(5 * SECOND)
        (await coming).release()
        assert run.loads == ["a:latest"]
        at_rest(run)


@pytest.mark.parametrize("steps", range(0, 60, 3))
async def test_an_abort_at_any_step_leaves_nothing_behind(steps: int) -> None:
    async with rig(A, B, limits=ONE) as run:
        await run.generate("a")
        leaving = start(run, "b")
        for _ in range(steps):
            await checkpoint()
        leaving.cancel()
        await asyncio.wait([leaving])
        if not leaving.cancelled():
            leaving.result().release()
        (await run.acquire("a")).release()
        assert sum(run.daemon.taken_bytes) == 132 * MIB
        await run.pool.plan("a")
        at_rest(run)


async def test_a_lease_that_is_granted_and_given_up_in_the_same_moment_is_given_back() -> None:
    async with rig(A) as run:
        leaving = start(run, "a")
        run.pool.on_progress(
            lambda progress: leaving.cancel() if progress.phase is LoadPhase.READY else None  # type: ignore[arg-type]
        )
        await settled(leaving)
        assert leaving.cancelled()
        await run.pool.plan("a")
        at_rest(run)


async def test_closing_ends_whoever_waits() -> None:
    clock = ManualClock()
    async with rig(A, B, clock=clock, limits=ONE, daemon={"load_s": 5.0}) as run:
        tasks = [start(run, name) for name in "aabb"]
        await until(lambda: clock.sleepers)
        await run.scope.aclose()
        await settled(*tasks)
        for each in tasks:
            assert isinstance(each.exception(), AdapterError)
            assert "closed" in str(each.exception())
        with pytest.raises(AdapterError, match="closed"):
            await run.acquire("a")
        assert not run.pool.at_work().total()


# In order


async def test_who_waits_is_served_in_order_and_sees_his_position() -> None:
    positions: list[tuple[str, int]] = []

    def note(progress: LoadProgress) -> None:
        if progress.phase is LoadPhase.QUEUED:
            positions.append((progress.model[0], progress.position))

    async with rig(A, B, C, D, limits=ONE) as run:
        held = await run.acquire("a")
        run.pool.on_progress(note)
        tasks = []
        for name in "bcd":
            tasks.append(start(run, name))
            await until(lambda: len(positions) == len(tasks))
        assert positions == [("b", 1), ("c", 2), ("d", 3)]
        order: list[str] = []
        held.release()
        for task in tasks:
            lease = await task
            order.append(lease.model)
            lease.release()
        assert order == ["b:latest", "c:latest", "d:latest"] == run.loads[1:]
        assert positions[3:] == [("c", 1), ("d", 2), ("d", 1)]
        at_rest(run)


async def test_whoever_is_first_is_not_overtaken_for_ever() -> None:
    async with rig(A, B, limits=ONE) as run:
        leases = [await run.acquire("a")]
        waiting = start(run, "b")
        await until(lambda: run.pool._line.waiting)
        again = [start(run, "a") for _ in range(20)]
        for _ in range(20):
            await checkpoint()
        assert not any(each.done() for each in again)
        leases.pop().release()
        (await waiting).release()
        for each in again:
            (await each).release()
        assert run.loads == ["a:latest", "b:latest", "a:latest"]
        at_rest(run)


async def test_who_needs_no_memory_does_not_wait_for_those_who_do() -> None:
    async with rig(A, B, C, limits=bounds(400)) as run:
        await run.generate("b")
        held = await run.acquire("a")
        run.pool._planner.pinned.add("b:latest")
        waiting = start(run, "c")
        await until(lambda: run.pool._line.waiting)
        (await run.acquire("b")).release()
        assert not waiting.done()
        held.release()
        (await waiting).release()


async def test_only_so_many_models_work_at_once_and_the_next_gets_its_place() -> None:
    async with rig(A, B, C, limits=bounds(2000, parallel=2)) as run:
        for name in "abc":
            await run.pool.ensure_loaded(name)
        one, two = await run.acquire("a"), await run.acquire("b")
        more = await run.acquire("b")
        third = start(run, "c")
        await until(lambda: run.pool._line.waiting)
        newcomer = start(run, "a")
        await until(lambda: run.pool._line.waiting == 2)
        one.release()
        lease = await third
        assert not newcomer.done()
        two.release()
        more.release()
        (await newcomer).release()
        lease.release()
        assert run.loads == ["a:latest", "b:latest", "c:latest"]
        at_rest(run)


async def test_the_queue_is_bounded() -> None:
    async with rig(A, B, C, limits=ONE, queue_length=2) as run:
        held = await run.acquire("a")
        waiting = [start(run, "b"), start(run, "b")]
        await until(lambda: run.pool._line.waiting == 2)
        for name in "cb":
            with pytest.raises(ServerBusy, match="2 requests wait for memory") as caught:
                await run.acquire(name)
            assert "pool.queue_length" in caught.value.hint
            assert (caught.value.status, caught.value.model) == (503, f"{name}:latest")
        held.release()
        for each in waiting:
            (await each).release()
        at_rest(run)


async def test_who_has_waited_for_a_place_is_not_sent_away_from_the_queue_for_memory() -> None:
    limits = bounds(330, parallel=2)
    async with rig(A, model("b", 200), C, D, limits=limits, queue_length=2) as run:
        await run.pool.plan("d")
        held, other = await run.acquire("a"), await run.acquire("c")
        first, second = start(run, "b"), start(run, "d")
        await until(lambda: run.pool._line.waiting == 2)
        listings = len([each for each in run.daemon.requests if each.path == "/api/ps"])
        held.release()
        await run.daemon.until(
            lambda: len([each for each in run.daemon.requests if each.path == "/api/ps"]) > listings
        )
        third = start(run, "d")
        await until(lambda: run.pool._line.waiting == 3)
        assert not first.done()
        other.release()
        for task in (first, second, third):
            (await task).release()
        at_rest(run)


async def test_the_time_in_both_queues_counts() -> None:
    clock = ManualClock()
    limits = bounds(330, parallel=2)
    async with rig(A, model("b", 200), C, limits=limits, clock=clock, queue_s=30.0) as run:
        held, other = await run.acquire("a", keep_alive=-1), await run.acquire("c", keep_alive=-1)
        waiting = start(run, "b")
        await until(lambda: clock.sleepers)
        clock.advance(20 * SECOND)
        held.release()
        await until(lambda: run.pool._line.errands[0].closing == {"c:latest", "a:latest"})
        await until(lambda: clock.sleepers)
        clock.advance(10 * SECOND)
        await settled(waiting)
        with pytest.raises(ServerBusy, match="for memory for 30 s"):
            waiting.result()
        other.release()
        at_rest(run)


async def test_nobody_waits_longer_than_he_may() -> None:
    clock = ManualClock()
    async with rig(A, B, limits=ONE, clock=clock, queue_s=30.0, keep_alive=-1) as run:
        held = await run.acquire("a")
        first = start(run, "b")
        await until(lambda: clock.sleepers)
        clock.advance(20 * SECOND)
        second = start(run, "b")
        await until(lambda: run.pool._line.waiting == 2)
        for _ in range(5):
            await checkpoint()
        clock.advance(10 * SECOND)
        await settled(first)
        with pytest.raises(
            ServerBusy, match=r"waited for memory for 30 s, at place 1.*a:latest"
        ) as caught:
            first.result()
        assert "pool.queue_s" in caught.value.hint
        assert not second.done()
        clock.advance(20 * SECOND)
        await settled(second)
        assert isinstance(second.exception(), ServerBusy)
        (await run.acquire("a")).release()
        held.release()
        at_rest(run)


async def test_who_waits_for_a_place_to_work_is_told_so() -> None:
    clock = ManualClock()
    async with rig(A, B, limits=bounds(2000, parallel=1), clock=clock, queue_s=30.0) as run:
        held = await run.acquire("a", keep_alive=-1)
        waiting = start(run, "b")
        await until(lambda: clock.sleepers)
        clock.advance(30 * SECOND)
        await settled(waiting)
        with pytest.raises(ServerBusy, match="for a place to work"):
            waiting.result()
        held.release()
        at_rest(run)


# Options


async def test_mixed_requests_never_reload(
    scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    requests = 200
    options: list[dict[str, Any]] = [
        {},
        {"num_ctx": 1024},
        {"num_ctx": 8192, "num_batch": 64},
        {"shift": False},
        {"num_thread": 3},
    ]
    for number in range(scaled(100)):
        async with rig(model("a", context_length=8192, length=1)) as run:
            first = await run.generate("a", **options[number % len(options)])
            notes: list[str] = []
            for each in range(requests):
                lease = await run.generate("a", **options[each % len(options)])
                assert lease.warm
                assert lease.request.reloading == first.request.reloading
                notes += lease.notes
            assert run.loads == ["a:latest"]
            assert len(notes) >= requests / 2
    measured("reloads in 200 requests with mixed options", 0.0, "= 0", "reloads", requests)


async def test_what_was_not_granted_is_said() -> None:
    async with rig(A) as run:
        await run.pool.ensure_loaded("a", reloading={"num_ctx": 1024})
        lease = await run.generate("a", num_ctx=4096, seed=3)
        assert lease.notes == (
            "num_ctx=4096 was not used: a:latest is in memory with num_ctx=1024",
        )
        assert (await run.generate("a")).notes == ()
        assert run.daemon.requests[-2].json()["options"] == {"seed": 3, "num_ctx": 1024}


async def test_differences_are_refused_where_that_is_wanted() -> None:
    async with rig(A, reloading=Reloading.REFUSE) as run:
        first = start(run, "a", num_ctx=1024)
        second = start(run, "a", num_ctx=2048)
        await settled(first, second)
        first.result().release()
        with pytest.raises(InvalidRequest, match="in memory with num_ctx=1024"):
            second.result()
        with pytest.raises(InvalidRequest):
            await run.acquire("a", num_ctx=2048)
        (await run.acquire("a")).release()
        at_rest(run)


async def test_a_model_is_loaded_anew_where_that_is_allowed_once_it_is_idle() -> None:
    async with rig(A, reloading=Reloading.ALLOW) as run:
        held = await run.acquire("a", num_ctx=1024)
        anew = [start(run, "a", num_ctx=2048) for _ in range(3)]
        await until(lambda: run.pool._line.waiting)
        assert run.loads == ["a:latest"]
        held.release()
        for each in anew:
            lease = await each
            assert lease.request.reloading == {"num_ctx": 2048}
            lease.release()
        assert run.pool.residents()[0].num_ctx == 2048
        assert run.pool.history[-1].evict[0].reason == "it is loaded anew with other options"
        assert len(run.loads) == 2
        at_rest(run)


async def test_two_who_want_a_model_differently_both_get_it() -> None:
    async with rig(A, reloading=Reloading.ALLOW) as run:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(run.generate("a", num_ctx=n)) for n in (1024, 2048, 1024, 4096)
            ]
        for task, wanted in zip(tasks, (1024, 2048, 1024, 4096), strict=True):
            assert task.result().request.reloading == {"num_ctx": wanted}
        at_rest(run)


async def test_nobody_is_refused_for_what_somebody_else_wants() -> None:
    """Who comes second waits for the first one's load, and that one asks for more than there is."""
    large = model("a", context_length=1 << 20)
    async with rig(large, limits=bounds(250)) as run:
        first = start(run, "a", num_ctx=1 << 20)
        second = start(run, "a", num_ctx=512)
        await settled(first, second)
        assert isinstance(first.exception(), BudgetExceeded)
        with second.result() as lease:
            assert lease.request.reloading == {"num_ctx": 512}
        assert run.loads == ["a:latest"]
        at_rest(run)


async def test_a_model_that_somebody_else_has_loaded_is_used_as_it_is() -> None:
    async with rig(A) as run:
        await run.send(run.request("a", num_ctx=1024))
        lease = await run.generate("a")
        assert lease.warm
        assert lease.request.reloading == {"num_ctx": 1024}
        assert run.loads == ["a:latest"]
        assert run.pool.residents()[0].foreign


async def test_a_keep_alive_of_nought_loads_with_the_prompt_and_leaves_nothing() -> None:
    async with rig(A, B, limits=ONE) as run:
        await run.generate("b")
        lease = await run.generate("a", keep_alive=0)
        assert (lease.warm, lease.request.keep_alive) == (False, 0)
        posts = [
            each.json()["prompt"] for each in run.daemon.requests if each.path == "/api/generate"
        ]
        assert posts == ["", "a prompt", "", "a prompt"], (
            "the third is the unload of the other model"
        )
        assert run.daemon.residents == []
        assert (await run.pool.plan("a")).resident is False
        assert await run.pool.ensure_loaded("a", keep_alive=0) is False
        at_rest(run)


async def test_an_embedding_model_is_brought_and_evicted_by_embeddings() -> None:
    embedder = model("e", capabilities=("embedding",))
    async with rig(embedder, A, limits=ONE) as run:
        with await run.pool.acquire(embed_request("e", "text", {}, "5m")) as lease:
            assert lease.model == "e:latest"
        await run.generate("a")
        assert run.told(Change.EVICTED) == [("e:latest", Change.EVICTED)]


# Progress


async def test_a_load_tells_how_far_it_is() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock, daemon={"load_s": 5.0}) as run:
        for expected in (None, 5.0):
            told: list[LoadProgress] = []
            task = asyncio.create_task(run.pool.acquire(run.request("a"), on_progress=told.append))
            await until(lambda: clock.sleepers)
            clock.advance(5 * SECOND)
            (await task).release()
            assert [each.phase for each in told] == [LoadPhase.LOADING, LoadPhase.READY]
            assert told[0].expected_s == expected
            again = await run.pool.acquire(run.request("a"), on_progress=told.append)
            again.release()
            assert told[-1].phase is LoadPhase.READY
            assert (await run.pool.plan("a")).expected_s == 0.0
            await run.pool.unload("a")
            assert (await run.pool.plan("a")).expected_s == 5.0


async def test_a_callback_that_raises_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a fault of the application")

    async with rig(A) as run:
        run.pool.on_change(broken)
        run.pool.on_progress(broken)
        (await run.pool.acquire(run.request("a"), on_progress=broken)).release()
        at_rest(run)
    assert "a callback for the progress of a load raised" in caplog.text
    assert "a callback for changes in memory raised" in caplog.text


async def test_a_load_that_makes_progress_is_not_cut() -> None:
    async def busy(_: str) -> float:
        looks.append(len(looks))
        return float(len(looks))

    looks: list[int] = []
    clock = ManualClock()
    around = Surroundings(activity=busy)
    async with rig(A, clock=clock, surroundings=around, daemon={"load_s": 5.0}, load_s=0.05) as run:
        task = start(run, "a")
        await until(lambda: len(looks) > 4)
        clock.advance(5 * SECOND)
        (await task).release()
        phases = [each.phase for each in run.progress]
        assert phases.count(LoadPhase.LOADING) > 4


# What goes wrong


@pytest.mark.parametrize(
    ("faults", "kind"),
    [("load_fail*1", ModelLoadFailed), ("cold_load=1h*1", ModelLoadFailed)],
)
async def test_a_load_that_fails_is_told_and_leaves_room_for_the_next(
    faults: str, kind: type[AdapterError]
) -> None:
    async with rig(A, B, limits=ONE, load_s=0.2, daemon={"faults": faults}) as run:
        tasks = [start(run, "a") for _ in range(3)]
        await settled(*tasks)
        for each in tasks:
            assert isinstance(error := each.exception(), kind)
            assert error.hint
        assert run.pool.residents() == []
        await run.generate("b")
        await run.generate("a")
        assert run.daemon.residents == ["a:latest"]
        at_rest(run)


async def test_what_is_not_there_is_said() -> None:
    async with rig(A) as run:
        with pytest.raises(ModelNotFound):
            await run.acquire("nobody")
        with pytest.raises(ModelNotFound):
            await run.pool.plan("nobody")
        await run.pool.unload("nobody")
        with pytest.raises(InvalidRequest, match="no option of a load"):
            await run.pool.pin("a", temperature=1)
        at_rest(run)


async def test_ill_typed_options_of_a_load_are_said_of_a_model_that_is_in_memory_too() -> None:
    async with rig(A) as run:
        await run.pool.ensure_loaded("a")
        with pytest.raises(InvalidRequest, match="num_ctx must be an integer"):
            await run.pool.ensure_loaded("a", reloading={"num_ctx": "x"})
        with pytest.raises(InvalidRequest, match="num_ctx must be an integer"):
            await run.pool.plan("a", num_ctx=typing.cast("int", "x"))
        at_rest(run)


async def test_a_model_that_could_not_be_pinned_is_not_pinned_later() -> None:
    async with rig(A, B) as run:
        with pytest.raises(ModelNotFound):
            await run.pool.pin("nobody")
        with pytest.raises(InvalidRequest):
            await run.pool.pin("a", temperature=1)
        await run.pool.ensure_loaded("a")
        assert [each.pinned for each in run.pool.residents()] == [False]
        await run.pool.pin("a")
        with pytest.raises(InvalidRequest):
            await run.pool.pin("a", temperature=1)
        assert [each.pinned for each in run.pool.residents()] == [True]


@pytest.mark.parametrize("where", ["the eviction", "the load", "reading back"])
async def test_a_daemon_that_dies_on_the_way_leaves_the_pool_right(where: str) -> None:
    clock = ManualClock()
    async with rig(A, B, limits=ONE, clock=clock) as run:
        await run.generate("a")
        counts = {"the eviction": 1, "the load": 2, "reading back": 2}
        task = start(run, "b")
        posts = len([each for each in run.daemon.requests if each.path == "/api/generate"])

        def reached() -> bool:
            seen = [each.path for each in run.daemon.requests]
            done = seen.count("/api/generate") - posts == counts[where]
            return done and (where != "reading back" or seen[-1] == "/api/ps")

        await run.daemon.until(reached)
        await run.daemon.die()
        await settled(task)
        error = task.exception()
        assert error is None or isinstance(error, (ConnectionLost, ConnectFailed))
        if error is None:
            task.result().release()
        run.pool.forget()
        assert run.pool.residents() == []
        await run.daemon.revive()
        await run.generate("b")
        await run.generate("a")
        assert run.daemon.residents == ["a:latest"]
        at_rest(run)


async def test_a_daemon_that_is_replaced_has_nothing_in_memory() -> None:
    async with rig(A) as run:
        lease = await run.acquire("a")
        await run.daemon.die()
        await run.daemon.revive()
        run.pool.forget()
        assert run.told()[-1] == ("a:latest", Change.UNLOADED_ELSEWHERE)
        lease.release()
        assert (await run.generate("a")).warm is False
        at_rest(run)


async def test_unloading_waits_for_who_works() -> None:
    async with rig(A) as run:
        held = await run.acquire("a")
        unloading = asyncio.create_task(run.pool.unload("a"))
        await until(lambda: run.pool._line.waiting)
        newcomer = start(run, "a")
        await until(lambda: run.pool._line.waiting == 2)
        held.release()
        await unloading
        assert run.told()[-1] == ("a:latest", Change.UNLOADED)
        (await newcomer).release()
        assert run.loads == ["a:latest", "a:latest"]
        at_rest(run)


# Other models, and new ones


def replacing(*served: str) -> Surroundings:
    async def find(request: Any, error: AdapterError) -> list[Substitution]:
        error.hint = f"these would do: {', '.join(served)}"
        return [Substitution(request.model, each, type(error).__name__) for each in served]

    return Surroundings(substitutes=find)


async def test_another_model_serves_in_place_of_one_that_cannot_be_had() -> None:
    around = replacing("nobody:latest", "big:latest", "a:latest")
    async with rig(A, model("big", 900), limits=ONE, surroundings=around) as run:
        lease = await run.generate("missing", seed=7)
        assert lease.model == "a:latest"
        assert lease.substitution == Substitution("missing:latest", "a:latest", "ModelNotFound")
        assert run.daemon.requests[-1].json()["model"] == "a:latest"
        assert run.daemon.requests[-1].json()["options"] == {"seed": 7}
        assert (await run.generate("big")).substitution == Substitution(
            "big:latest", "a:latest", "BudgetExceeded"
        )
        at_rest(run)
    async with rig(A, surroundings=replacing("nobody")) as run:
        with pytest.raises(ModelNotFound, match="missing"):
            await run.acquire("missing")


async def test_substitution_is_off_by_one_switch_and_the_error_says_who_would_do() -> None:
    async with rig(A, surroundings=replacing("a", "b"), substitute=False) as run:
        with pytest.raises(ModelNotFound) as caught:
            await run.acquire("missing")
        assert caught.value.hint == "these would do: a, b"
        assert run.loads == []


async def test_a_model_that_is_missing_is_pulled_once_where_that_is_allowed() -> None:
    pulled: list[str] = []
    clock = ManualClock()

    async def pull(name: str, tell: Progress) -> None:
        tell(LoadProgress(name, LoadPhase.PULLING, done_bytes=1, total_bytes=2))
        if name == "broken:latest":
            raise PullFailed("the registry has gone away", hint="try again")
        pulled.append(name)
        shelf = run.daemon._shelf
        shelf._models["new:latest"] = PretendModel("new")

    around = Surroundings(pull=pull)
    async with rig(A, surroundings=around, pulling=Pulling.ALWAYS, clock=clock) as run:
        tasks = [start(run, "new") for _ in range(3)]
        for each in tasks:
            (await each).release()
        assert pulled == ["new:latest"]
        assert run.progress[0].phase is LoadPhase.PULLING
        with pytest.raises(PullFailed):
            await run.acquire("broken")
    async with rig(A, surroundings=around) as run:
        with pytest.raises(ModelNotFound):
            await run.acquire("new")


# What it costs


async def test_a_model_that_is_there_costs_microseconds(
    scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    async with rig(A) as run:
        await run.pool.ensure_loaded("a")
        request, before = run.request("a"), len(run.daemon.requests)
        times = scaled(100_000)
        began = perf_counter_ns()
        for _ in range(times):
            await run.pool.ensure_loaded("a")
        loaded = perf_counter_ns() - began
        began = perf_counter_ns()
        for _ in range(times):
            (await run.pool.acquire(request)).release()
        leased = perf_counter_ns() - began
        assert len(run.daemon.requests) == before
    measured("ensure_loaded on a resident model", loaded / times / 1e3, "≤ 50", "µs", times)
    measured("a lease of a resident model", leased / times / 1e3, "≤ 50", "µs", times)
