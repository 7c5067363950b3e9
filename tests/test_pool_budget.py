"""The budget is kept, and who goes is the one that was planned: on a pretended daemon, over TCP."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.errors import AdapterError, BudgetExceeded, ServerBusy
from ollama_adapter.events import Change, Footprint
from ollama_adapter.pool import Lease, Surroundings
from ollama_adapter.testing import Machine, ManualClock, Move, PretendModel
from tests.pools import MIB, Rig, bounds, model, rig
from tests.serving import until

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
A, B, C = model("a"), model("b"), model("c")
TWO = bounds(450)
"""Room for two of them, of which each is taken to need some 220 MiB at most."""


def left(run: Rig) -> set[str]:
    return {name.partition(":")[0] for name in run.daemon.residents}


async def test_the_least_recently_used_model_gives_its_place() -> None:
    clock = ManualClock()
    async with rig(A, B, C, limits=TWO, clock=clock) as run:
        for name in ("a", "b"):
            await run.generate(name)
            clock.advance(60 * SECOND)
        await run.generate("a")
        plan = await run.pool.plan("c")
        assert [each.model for each in plan.evict] == ["b:latest"]
        assert plan.evict[0].reason == "unused for 60 s, longer than any other that may go"
        await run.generate("c")
        assert left(run) == {"a", "c"}
        assert run.daemon.moves[-2:] == [(Move.UNLOADED, "b:latest"), (Move.LOADED, "c:latest")]
        done = run.pool.history[-1]
        assert done.evict == plan.evict
        assert run.told()[-2:] == [("b:latest", Change.EVICTED), ("c:latest", Change.LOADED)]
        assert done.takes.total == sum(run.daemon.taken_bytes) // 2


async def test_what_the_daemon_lists_counts_and_not_what_was_planned() -> None:
    async with rig(A, B, C, limits=bounds(460)) as run:
        plan = await run.pool.plan("a")
        assert 3 * plan.takes.total > 460 * MIB > 264 * MIB + plan.takes.total
        for name in ("a", "b"):
            await run.generate(name)
        (first, second) = run.pool.residents()
        assert first.footprint == second.footprint == Footprint(132 * MIB)
        await run.generate("c")
        assert left(run) == {"a", "b", "c"}, "what is known fits, where a guess would not"
        assert (await run.pool.plan("c")).resident


async def test_a_busy_model_is_waited_for_and_closed_to_newcomers() -> None:
    async with rig(A, B, limits=bounds(250)) as run, asyncio.TaskGroup() as group:
        first, second = await run.acquire("a"), await run.acquire("a")
        waiting = group.create_task(run.acquire("b"))
        await until(lambda: run.progress[-1].position == 1)
        newcomer = group.create_task(run.acquire("a"))
        await until(lambda: run.progress[-1].position == 2)
        first.release()
        assert run.loads == ["a:latest"], "it is not idle yet"
        second.release()
        lease = await waiting
        assert left(run) == {"b"}
        assert lease.queued_ms > 0
        assert not newcomer.done()
        lease.release()
        (await newcomer).release()
        assert run.loads == ["a:latest", "b:latest", "a:latest"]


async def test_pinned_models_and_those_of_others_stay() -> None:
    async with rig(A, B, C, limits=TWO, pinned=("a",)) as run:
        await run.generate("a")
        assert run.pool.residents()[0].pinned
        foreign = run.request("b")
        await run.send(foreign)
        plan = await run.pool.plan("c")
        assert not plan.fits
        assert (
            "pinned models (a:latest) and models that are not ours to unload (b:latest)"
            in plan.reason
        )
        with pytest.raises(BudgetExceeded, match="does not fit into memory: it takes") as caught:
            await run.acquire("c")
        assert "ollama-adapter plan c:latest" in caught.value.hint
        assert run.told()[-1] == ("b:latest", Change.LOADED_ELSEWHERE)
        assert left(run) == {"a", "b"}
        await run.pool.unpin("a")
        await run.generate("c")
        assert left(run) == {"b", "c"}


async def test_a_pinned_model_is_sent_a_keep_alive_without_end() -> None:
    clock = ManualClock()
    async with rig(A, B, clock=clock) as run:
        await run.generate("a", keep_alive="1m")
        await run.pool.pin("a")
        lease = await run.generate("a", keep_alive="1m")
        assert lease.request.keep_alive == -1
        clock.advance(10**6 * SECOND)
        assert left(run) == {"a"}
        assert run.pool.is_warm("a", {})
        await run.pool.unpin("a")
        await run.pool.unpin("b")
        clock.advance(301 * SECOND)
        assert left(run) == set()
        assert run.loads == ["a:latest"]
        await run.pool.pin("b", num_ctx=1024)
        assert run.pool.residents()[-1].num_ctx == 1024


@pytest.mark.parametrize(
    ("big", "limits", "why"),
    [
        (model("big", 900), bounds(500, largest=2000), "and the whole budget is 500 MiB of RAM"),
        (
            model("big", 300),
            bounds(500, largest=200),
            "the largest model that may be loaded 200 MiB",
        ),
        (A, bounds(50, largest=200), "and the whole budget is 50 MiB of RAM"),
    ],
)
async def test_what_is_larger_than_the_budget_is_refused_and_moves_nobody(
    big: PretendModel, limits: object, why: str
) -> None:
    async with rig(big, limits=limits) as run:  # type: ignore[arg-type]
        for _ in range(2):
            with pytest.raises(BudgetExceeded, match=why):
                await run.acquire(big.name)
        assert run.daemon.moves == []
        assert run.pool.residents() == []
        assert run.pool.at_work().total() == 0


async def test_a_model_that_turns_out_too_large_is_unloaded_again_and_known_from_then_on() -> None:
    liar = model("liar", 100, hidden_bytes=400 * MIB)
    async with rig(A, liar, limits=bounds(600)) as run:
        await run.generate("a")
        await run.generate("liar")
        moves = [move for move, name in run.daemon.moves if name == "liar:latest"]
        assert moves == [Move.LOADED, Move.UNLOADED, Move.LOADED], "planned anew, as it was seen"
        assert left(run) == {"liar"}
        assert sum(run.daemon.taken_bytes) == (532) * MIB
        assert [each.change for each in run.changes if each.model == "liar:latest"] == [
            Change.LOADED,
            Change.EVICTED,
            Change.LOADED,
        ]
    async with rig(liar, limits=bounds(400)) as run:
        with pytest.raises(BudgetExceeded, match=r"it takes 0\.5 GiB"):
            await run.acquire("liar")
        assert left(run) == set()
        plan = await run.pool.plan("liar")
        assert (plan.fits, plan.takes.total) == (False, 532 * MIB)


async def test_a_shared_daemon_is_told_of_the_budget_and_loads_all_the_same(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig(A, model("big", 900), limits=bounds(250), shared=True) as run:
        held = await run.acquire("a")
        plan = await run.pool.plan("big")
        assert not plan.fits and plan.advisory and not plan.refused
        (await run.acquire("big")).release()
        assert left(run) == {"a", "big"}
        held.release()
        await run.pool.unload("big")
        await run.generate("big")
    warned = [each for each in caplog.records if "only advice" in each.message]
    assert len(warned) == 1


async def test_a_text_is_embedded_alone_however_many_requests_there_are_at_a_time() -> None:
    around = Surroundings(parallel=lambda: 3)
    writes, embeds = model("a"), model("e", capabilities=("embedding",))
    async with rig(writes, embeds, surroundings=around) as run:
        three, alone = await run.pool.plan("a"), await run.pool.plan("e")
        around.parallel = lambda: 1
        assert three.kv_bytes == 3 * (await run.pool.plan("a")).kv_bytes
        assert alone == await run.pool.plan("e")


async def test_a_gpu_has_a_budget_of_its_own_and_a_fall_back_is_told() -> None:
    machine = Machine(vram_bytes=1500 * MIB)
    async with rig(A, B, limits=bounds(1000, 1500), machine=machine) as run:
        await run.generate("a")
        assert run.pool.residents()[0].footprint == Footprint(0, 132 * MIB)
        run.daemon.fall_back("a")
        run.daemon.grow("a", MIB)
        await run.pool.plan("b")
        assert run.told()[-2:] == [
            ("a:latest", Change.FELL_BACK_TO_CPU),
            ("a:latest", Change.GREW),
        ]
        assert run.changes[-1].footprint == Footprint(133 * MIB)
    async with rig(A, limits=bounds(1000, 1500)) as run:  # the daemon does not see the GPU
        await run.generate("a")
        assert run.told() == [("a:latest", Change.LOADED), ("a:latest", Change.FELL_BACK_TO_CPU)]


async def test_the_plan_of_a_model_in_memory_counts_it_among_what_is_used() -> None:
    async with rig(A, B) as run:
        await run.generate("a")
        await run.generate("b")
        plan = await run.pool.plan("a")
        assert plan.resident
        assert plan.used == sum((each.footprint for each in run.pool.residents()), Footprint())


async def test_the_number_of_models_in_memory_is_bounded() -> None:
    async with rig(A, B, C, limits=bounds(9000, resident=2)) as run:
        for name in "abcabc":
            await run.generate(name)
            assert len(run.daemon.residents) <= 2


# What others do


async def test_what_somebody_else_unloads_is_noticed_and_loaded_again() -> None:
    async with rig(A, B) as run:
        await run.generate("a")
        run.daemon.unload("a")
        assert (await run.pool.plan("b")).used == Footprint()
        assert run.told()[-1] == ("a:latest", Change.UNLOADED_ELSEWHERE)
        assert (await run.generate("a")).warm is False


async def test_a_model_in_use_keeps_its_place_though_somebody_else_unloads_it() -> None:
    async with rig(A, B) as run:
        lease = await run.acquire("a")
        run.daemon.unload("a")
        plan = await run.pool.plan("b")
        assert plan.used.total == 132 * MIB
        assert run.told()[-1] == ("a:latest", Change.UNLOADED_ELSEWHERE)
        await run.pool.plan("b")
        assert run.told(Change.UNLOADED_ELSEWHERE) == [("a:latest", Change.UNLOADED_ELSEWHERE)]
        await run.send(lease.request)
        lease.release()
        assert (await run.generate("a")).warm is True


async def test_a_model_whose_time_is_up_is_gone_without_anybodys_doing() -> None:
    clock = ManualClock()
    async with rig(A, B, clock=clock) as run:
        await run.generate("a", keep_alive="10s")
        clock.advance(11 * SECOND)
        await run.pool.plan("b")
        assert run.told()[-1] == ("a:latest", Change.EXPIRED)


async def test_a_model_that_was_deleted_while_in_memory_keeps_its_place_until_its_time_is_up() -> (
    None
):
    clock = ManualClock()
    async with rig(A, B, limits=bounds(250), clock=clock) as run:
        await run.generate("a")
        await run.pool._catalogue._client.delete("a")
        with pytest.raises(BudgetExceeded, match="not ours to unload"):
            await run.acquire("b")
        with pytest.raises(BudgetExceeded, match="could not be unloaded"):
            await run.pool.unload("a")
        assert left(run) == {"a"}
        clock.advance(301 * SECOND)
        await run.generate("b")
        assert left(run) == {"b"}


async def test_a_model_that_somebody_else_uses_is_not_unloaded_and_another_way_is_looked_for() -> (
    None
):
    clock, stalls = ManualClock(), {"faults": "stall@1*1"}
    async with rig(A, B, C, limits=bounds(400), clock=clock, daemon=stalls) as run:
        await run.pool.ensure_loaded("a")
        clock.advance(60 * SECOND)
        await run.pool.ensure_loaded("b")
        using = asyncio.create_task(run.send(run.request("a")))
        await run.daemon.until(lambda: run.daemon.struck)
        assert [each.model for each in (await run.pool.plan("c")).evict] == ["a:latest"]
        acquiring = asyncio.create_task(run.acquire("c"))
        while not acquiring.done():
            await checkpoint()
            if clock.sleepers:  # it waits for the model to be gone
                clock.advance(SECOND)
        (await acquiring).release()
        assert left(run) == {"a", "c"}
        assert run.told(Change.EVICTED) == [("b:latest", Change.EVICTED)]
        using.cancel()
        await asyncio.wait([using])


async def test_the_watch_tells_what_changes_while_nobody_asks() -> None:
    clock = ManualClock()
    async with rig(A, clock=clock, watch_s=5.0) as run:
        await run.generate("a")
        told = run.pool.changes()
        run.daemon.grow("a", MIB)
        await until(lambda: clock.sleepers)
        clock.advance(5 * SECOND)
        assert (await anext(told)).change is Change.GREW
        run.daemon.unload("a")
        await until(lambda: clock.sleepers)
        clock.advance(5 * SECOND)
        assert (await anext(told)).change is Change.UNLOADED_ELSEWHERE
        await until(lambda: not clock.sleepers)
        run.pool.close()
        assert [each async for each in told] == []


async def test_a_model_that_grows_beyond_the_budget_makes_others_go() -> None:
    clock = ManualClock()
    async with rig(A, B, limits=bounds(460), clock=clock, watch_s=5.0) as run:
        await run.generate("a")
        held = await run.acquire("b")
        run.daemon.grow("b", 300 * MIB)
        told = run.pool.changes()
        await until(lambda: clock.sleepers)
        clock.advance(5 * SECOND)
        assert (await anext(told)).change is Change.GREW
        gone = await anext(told)
        assert (gone.model, gone.change) == ("a:latest", Change.EVICTED)
        assert gone.reason.startswith(
            "models in memory have grown beyond the budget: unused for 5 s"
        )
        assert left(run) == {"b"}
        held.release()
        assert not run.pool.at_work().total()


# Laws


async def _random_steps(run: Rig, steps: int, drawn: random.Random, names: str) -> None:
    """Many requests at once, of which some are aborted; others unload what they did not load."""
    budget = run.pool.surroundings.limits().budget
    leases: list[Lease] = []
    tasks: set[asyncio.Task[Lease]] = set()
    for _ in range(steps):
        for task in [each for each in tasks if each.done()]:
            tasks.remove(task)
            if not task.cancelled() and task.exception() is None:
                leases.append(task.result())
            elif not task.cancelled():
                assert isinstance(task.exception(), (BudgetExceeded, ServerBusy)), task.exception()
        match drawn.randrange(6):
            case 0 | 1 | 2 if len(tasks) + len(leases) < 12:
                tasks.add(asyncio.create_task(run.acquire(drawn.choice(names))))
            case 3 if tasks:
                drawn.choice(list(tasks)).cancel()
            case 4 if run.daemon.residents:
                run.daemon.unload(drawn.choice(run.daemon.residents))
            case _ if leases:
                lease = leases.pop(drawn.randrange(len(leases)))
                await run.send(lease.request)
                lease.release()
        await checkpoint()
        ram, vram = run.daemon.taken_bytes
        assert Footprint(ram, vram).fits(budget)
    for task in tasks:
        task.cancel()
    for task in tasks:
        try:
            leases.append(await task)
        except (asyncio.CancelledError, AdapterError):
            continue
    for lease in leases:
        lease.release()


@pytest.mark.timeout(0)
@pytest.mark.parametrize("gpu", [False, True])
async def test_no_sequence_of_requests_exceeds_the_budget(
    gpu: bool, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    sizes = {"a": 100, "b": 150, "c": 60, "d": 220, "e": 80, "f": 500}
    models = [model(name, mib, length=1) for name, mib in sizes.items()]
    limits = bounds(600, 900 if gpu else 0, parallel=3, resident=4)
    machine = Machine(vram_bytes=900 * MIB) if gpu else None
    steps, done = scaled(50_000), 0
    while done < steps:
        count = min(500, steps - done)
        async with rig(
            *models, limits=limits, machine=machine, queue_length=8, watchdog_s=None
        ) as run:
            await _random_steps(run, count, random.Random(f"{gpu} {done}"), "abcdef")
            assert Footprint(*run.daemon.most_bytes).fits(limits.budget)
            assert not run.pool.at_work().total()
            assert not any(each.users for each in run.pool.residents())
        done += count
    where = "RAM and VRAM" if gpu else "RAM"
    measured(f"budget of {where} exceeded in random steps", 0.0, "= 0", "times", steps)


async def _compare(run: Rig, clock: ManualClock, drawn: random.Random) -> None:
    """One load, next to its plan."""
    clock.advance(drawn.choice((1, 20, 40, 400)) * SECOND)
    name, options = drawn.choice("abcdef"), {"num_ctx": drawn.choice((1024, 4096))}
    plan = await run.pool.plan(name, options["num_ctx"])
    before, told = len(run.daemon.moves), len(run.changes)
    try:
        await run.pool.ensure_loaded(name, reloading=options)
    except BudgetExceeded:
        assert not plan.fits
        assert len(run.daemon.moves) == before
        return
    assert plan.fits
    moved = run.daemon.moves[before:]
    unloaded = [each for move, each in moved if move is Move.UNLOADED]
    assert unloaded == [each.model for each in plan.evict]
    if plan.resident:
        assert not moved
        return
    assert moved[-1] == (Move.LOADED, f"{name}:latest")
    done = run.pool.history[-1]
    assert (done.evict, done.reason, done.used) == (plan.evict, plan.reason, plan.used)
    assert done.takes.fits(plan.takes)
    reasons = [each.reason for each in run.changes[told:] if each.change is Change.EVICTED]
    assert reasons == [each.reason for each in plan.evict]


@pytest.mark.timeout(0)
async def test_a_plan_is_what_happens(
    scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    sizes = zip("abcdef", (100, 150, 60, 220, 80, 500), strict=True)
    models = [model(name, mib) for name, mib in sizes]
    clock, drawn = ManualClock(), random.Random(5)
    loads, limits = scaled(10_000), bounds(700, resident=4)
    for _ in range(0, loads, 100):
        async with rig(*models, limits=limits, clock=clock, watchdog_s=None) as run:
            for _ in range(100):
                await _compare(run, clock, drawn)
    measured("plans that were not what happened", 0.0, "= 0", "times", loads)
