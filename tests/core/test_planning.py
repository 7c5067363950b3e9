"""The laws of a plan, over random memories; and its words, in cases."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from ollama_adapter.config import Tier
from ollama_adapter.core.amounts import budget, duration, gib
from ollama_adapter.core.footprint import Need
from ollama_adapter.core.planning import Resident, Rules, as_measured, plan_load, plan_relief
from ollama_adapter.core.tiers import GIB, TIERS, Limits
from ollama_adapter.events import Footprint, LoadPlan

SECOND = 1_000_000_000
NOW = 10_000 * SECOND
COOLDOWN = 30 * SECOND
LOW = TIERS[Tier.LOW]
RULES = Rules(NOW, COOLDOWN)


def needing(total: int, weights: int | None = None) -> Need:
    return Need(4096, total if weights is None else weights, total - (weights or total), 0)


def held(
    name: str, ram: float = 0.0, vram: float = 0.0, idle_s: float = 600, **more: object
) -> Resident:
    taken = Footprint(int(ram * GIB), int(vram * GIB))
    return Resident(name, taken, NOW - int(idle_s * SECOND), **more)  # type: ignore[arg-type]


def limits(ram: float = 8.0, vram: float = 0.0, model: float = 8.0, resident: int = 8) -> Limits:
    room = Footprint(int(ram * GIB), int(vram * GIB))
    return replace(LOW, budget=room, model_bytes=int(model * GIB), resident=resident)


# Laws


RESIDENTS = st.builds(
    Resident,
    name=st.sampled_from("abcdefgh"),
    footprint=st.builds(Footprint, st.integers(0, 9), st.integers(0, 9)),
    last_used_ns=st.sampled_from([NOW - each * SECOND for each in (0, 1, 29, 31, 40, 70, 900)]),
    busy=st.booleans(),
    pinned=st.sampled_from([False, False, False, True]),
    foreign=st.sampled_from([False, False, False, True]),
    load_s=st.sampled_from([None, 0.5, 1.0, 5.0]),
)
MEMORIES = st.lists(RESIDENTS, max_size=7, unique_by=lambda each: each.name)
BUDGETS = st.builds(Footprint, st.integers(1, 30), st.integers(0, 20))
CASES = st.tuples(
    st.builds(needing, st.integers(1, 30)), MEMORIES, BUDGETS, st.integers(1, 7), st.integers(1, 30)
)
Case = tuple[Need, list[Resident], Footprint, int, int]


def solve(case: Case, rules: Rules = RULES, model: str = "x") -> LoadPlan:
    need, residents, room, most, largest = case
    bounds = replace(LOW, budget=room, model_bytes=largest, resident=most)
    return plan_load(model, need, residents, bounds, rules)


def leaving(plan: LoadPlan) -> list[str]:
    return [each.model for each in plan.evict] + list(plan.waits_for)


def remain(case: Case, gone: list[str]) -> list[Resident]:
    return [each for each in case[1] if each.name not in gone]


def total(residents: list[Resident], room: Footprint) -> Footprint:
    taken = sum((each.footprint for each in residents), Footprint())
    return taken if room.vram else Footprint(taken.total)


@given(CASES)
def test_nobody_goes_who_is_busy_pinned_or_somebody_elses(case: Case) -> None:
    plan, by_name = solve(case), {each.name: each for each in case[1]}
    for eviction in plan.evict:
        victim = by_name[eviction.model]
        assert not (victim.busy or victim.pinned or victim.foreign)
        assert eviction.reason
    for name in plan.waits_for:
        assert by_name[name].busy
        assert by_name[name].movable


@given(CASES)
def test_what_is_planned_is_within_the_budget(case: Case) -> None:
    plan = solve(case)
    _, _, room, most, largest = case
    if plan.fits:
        left = remain(case, leaving(plan))
        assert (total(left, room) + plan.takes).fits(room)
        assert len(left) < most
        assert plan.weights_bytes <= largest
    assert plan.takes.total == case[0].total
    assert plan.reason


@given(CASES)
def test_no_model_goes_that_could_stay(case: Case) -> None:
    plan = solve(case)
    gone = leaving(plan)
    for spared in gone:
        left = remain(case, [each for each in gone if each != spared])
        over = not (total(left, case[2]) + plan.takes).fits(case[2])
        assert over or len(left) >= case[3]


@given(CASES)
def test_nothing_fits_only_where_no_choice_of_models_makes_room(case: Case) -> None:
    plan = solve(case)
    need, residents, room, most, largest = case
    if plan.fits:
        return
    assert not plan.evict and not plan.waits_for
    if need.weights_bytes > largest or need.total > room.total:
        return
    stay = [each for each in residents if not each.movable]
    free = room - total(stay, room)
    vram = max(0, min(free.vram, need.total))
    assert len(stay) >= most or not Footprint(need.total - vram, vram).fits(free)


@given(CASES)
def test_a_model_that_the_gpus_can_hold_is_split_only_where_it_must_be(case: Case) -> None:
    plan = solve(case)
    need, residents, room, *_ = case
    if plan.fits and plan.takes.ram and need.total <= room.vram:
        stay = [each for each in residents if not each.movable]
        free = room - total(stay, room)
        assert not Footprint(0, need.total).fits(free)


@given(CASES)
def test_nobody_waits_where_the_idle_ones_are_enough(case: Case) -> None:
    plan = solve(case)
    if plan.waits_for:
        idle = [each for each in case[1] if each.movable and not each.busy]
        for count in range(len(idle) + 1):
            for some in combinations(idle, count):
                left = remain(case, [each.name for each in some])
                over = not (total(left, case[2]) + plan.takes).fits(case[2])
                assert over or len(left) >= case[3]


@given(CASES)
def test_what_was_used_within_the_cooldown_goes_only_where_nothing_else_is_enough(
    case: Case,
) -> None:
    plan = solve(case)
    by_name = {each.name: each for each in case[1]}
    hot = [each.model for each in plan.evict if RULES.is_hot(by_name[each.model])]
    if not hot or plan.waits_for:
        return
    cold = [
        each.name for each in case[1] if each.movable and not each.busy and not RULES.is_hot(each)
    ]
    left = remain(case, cold)
    assert not (total(left, case[2]) + plan.takes).fits(case[2]) or len(left) >= case[3]


@given(CASES, st.randoms())
def test_the_order_in_which_memory_is_listed_does_not_matter(case: Case, random: object) -> None:
    shuffled = list(case[1])
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    one, other = solve(case), solve((case[0], shuffled, *case[2:]))
    assert set(leaving(one)) == set(leaving(other))
    assert replace(one, evict=(), reason="", waits_for=()) == replace(
        other, evict=(), reason="", waits_for=()
    )


@given(CASES)
def test_a_shared_daemon_is_never_refused_and_nobody_is_waited_for(case: Case) -> None:
    plan = solve(case, structs.replace(RULES, advisory=True))
    own = solve(case)
    assert not plan.refused and plan.advisory and not plan.waits_for
    assert own.refused == (not own.fits)
    assert plan.takes.total == case[0].total
    if own.fits and not own.waits_for:
        assert plan.fits and leaving(plan) == leaving(own)
    else:
        assert not plan.fits and not plan.evict
        assert "decides by itself" in plan.reason


@given(CASES, RESIDENTS)
def test_a_model_that_is_loaded_anew_gives_its_own_place_first(case: Case, mine: Resident) -> None:
    mine = structs.replace(mine, name="x")
    need, residents, *rest = case
    plan = solve((need, [mine, *residents], *rest))  # type: ignore[arg-type]
    assert ("x" in plan.waits_for) == (plan.fits and mine.busy)
    evicted = "x" in [each.model for each in plan.evict]
    assert evicted == (plan.fits and not mine.busy and not mine.foreign)
    without = solve((need, residents, *rest))  # type: ignore[arg-type]
    assert without.fits == plan.fits
    assert set(leaving(plan)) - {"x"} == set(leaving(without))


@given(CASES)
def test_those_that_have_grown_make_others_go_as_far_as_that_helps(case: Case) -> None:
    _, residents, room, most, largest = case
    bounds = replace(LOW, budget=room, model_bytes=largest, resident=most)
    gone = plan_relief(residents, bounds, RULES)
    fits = total(residents, room).fits(room)
    idle = [each for each in residents if each.movable and not each.busy]
    assert {each.model for each in gone} <= {each.name for each in idle}
    assert not gone or not fits
    left = remain(case, [each.model for each in gone])
    if total(remain(case, [each.name for each in idle]), room).fits(room):
        assert total(left, room).fits(room)
    for each in gone:
        assert each.reason.startswith("models in memory have grown beyond the budget: unused for")


# Choices and their words


def evicted(plan: LoadPlan) -> dict[str, str]:
    return {each.model: each.reason for each in plan.evict}


def test_room_enough() -> None:
    plan = plan_load("x", needing(2 * GIB), [held("a", 1.0)], limits(), RULES, expected_s=1.5)
    assert plan.reason == "it takes 2.0 GiB, and 7.0 GiB of RAM are free"
    assert (plan.takes, plan.used) == (Footprint(2 * GIB), Footprint(GIB))
    assert (plan.expected_s, plan.num_ctx, plan.advisory) == (1.5, 4096, False)


def test_the_least_recently_used_goes() -> None:
    memory = [held("new", 4.0, idle_s=90), held("old", 4.0, idle_s=600)]
    plan = plan_load("x", needing(2 * GIB), memory, limits(), RULES)
    assert evicted(plan) == {"old": "unused for 10 min, longer than any other that may go"}
    assert plan.reason == "it takes 2.0 GiB, once old has gone"


def test_what_frees_too_little_stays_though_it_was_not_used_for_longer() -> None:
    memory = [held("small", 0.5, idle_s=600), held("new", 7.5, idle_s=90)]
    plan = plan_load("x", needing(2 * GIB), memory, limits(), RULES)
    assert evicted(plan) == {"new": "unused for 90 s; what is unused for longer frees too little"}


def test_between_equals_the_one_that_is_quick_to_load_again_goes() -> None:
    memory = [held("slow", 4.0, load_s=9.0), held("quick", 4.0, load_s=1.0)]
    plan = plan_load("x", needing(2 * GIB), memory, limits(), RULES)
    assert evicted(plan) == {
        "quick": "unused for 10 min, like others, and the quickest to load again"
    }


def test_between_equals_one_that_frees_enough_goes_before_several() -> None:
    memory = [held("a", 1.0), held("b", 1.0), held("c", 6.0)]
    plan = plan_load("x", needing(2 * GIB), memory, limits(), RULES)
    assert evicted(plan) == {
        "c": "unused for 10 min, like others, of which the quicker ones to load again free too little"
    }


def test_the_cooldown_holds_unless_nothing_else_is_enough() -> None:
    memory = [held("hot", 4.0, idle_s=5), held("cold", 4.0, idle_s=40)]
    plan = plan_load("x", needing(2 * GIB), memory, limits(), RULES)
    assert list(evicted(plan)) == ["cold"]
    plan = plan_load("x", needing(6 * GIB), memory, limits(), RULES)
    assert evicted(plan)["hot"] == (
        "unused for 5 s, which is within the cool-down of 30 s, but no other frees enough"
    )
    plan = plan_load("x", needing(2 * GIB), memory, limits(), Rules(NOW))
    assert list(evicted(plan)) == ["cold"], "without a cool-down it is the least recently used"


def test_busy_models_are_waited_for_where_nothing_else_helps() -> None:
    memory = [held("busy", 6.0, busy=True), held("idle", 2.0)]
    plan = plan_load("x", needing(4 * GIB), memory, limits(), RULES)
    assert plan.fits
    assert (plan.waits_for, plan.evict) == (("busy",), ())
    assert plan.reason == "it takes 4.0 GiB, once busy has come to an end"


def test_a_model_is_loaded_anew() -> None:
    memory = [held("x", 4.0), held("a", 4.0)]
    plan = plan_load("x", needing(4 * GIB), memory, limits(), RULES)
    assert evicted(plan) == {"x": "it is loaded anew with other options"}
    busy = plan_load("x", needing(4 * GIB), [held("x", 4.0, busy=True)], limits(), RULES)
    assert busy.waits_for == ("x",)
    shared = plan_load(
        "x",
        needing(9 * GIB),
        [held("x", 4.0)],
        limits(model=99),
        structs.replace(RULES, advisory=True),
    )
    assert list(evicted(shared)) == ["x"]


def test_a_gpu_takes_the_whole_model_or_what_it_has_room_for() -> None:
    room = limits(ram=8.0, vram=6.0, model=20.0)
    assert plan_load("x", needing(4 * GIB), [], room, RULES).takes == Footprint(0, 4 * GIB)
    plan = plan_load("x", needing(9 * GIB), [held("a", 1.0, 1.0)], room, RULES)
    assert plan.takes == Footprint(4 * GIB, 5 * GIB)
    assert "of which 4.0 GiB are in RAM, and slow" in plan.reason
    plan = plan_load("x", needing(4 * GIB), [held("a", vram=5.0)], room, RULES)
    assert list(evicted(plan)) == ["a"], "it is not split where another one can go"
    plan = plan_load("x", needing(4 * GIB), [held("a", vram=5.0, pinned=True)], room, RULES)
    assert (plan.takes, plan.evict) == (Footprint(3 * GIB, GIB), ())


@pytest.mark.parametrize(
    ("need", "memory", "room", "why"),
    [
        (
            needing(9 * GIB, 5 * GIB),
            [],
            limits(model=4.0),
            "its file has 5.0 GiB, and the largest model that may be loaded 4.0 GiB",
        ),
        (
            needing(9 * GIB, 5 * GIB),
            [],
            limits(),
            "it takes 9.0 GiB, and the whole budget is 8.0 GiB of RAM",
        ),
        (
            needing(30 * GIB, GIB),
            [],
            limits(vram=6.0),
            "it takes 30.0 GiB, and the whole budget is 8.0 GiB of RAM and 6.0 GiB of VRAM",
        ),
        (
            needing(4 * GIB),
            [held("p", 3.0, pinned=True), held("f", 3.0, foreign=True), held("i", 1.0)],
            limits(),
            "it takes 4.0 GiB, and 2.0 GiB of RAM can be had: the rest of the budget is taken by "
            "pinned models (p) and models that are not ours to unload (f)",
        ),
        (
            needing(GIB),
            [held("p", 1.0, pinned=True), held("i", 1.0)],
            limits(resident=1),
            "1 model may be in memory, and all of these stay: pinned models (p)",
        ),
    ],
)
def test_why_there_is_no_room(need: Need, memory: list[Resident], room: Limits, why: str) -> None:
    plan = plan_load("x", need, memory, room, RULES)
    assert (plan.fits, plan.reason) == (False, why)


def test_a_shared_daemon_is_told() -> None:
    shared = structs.replace(RULES, advisory=True)
    plan = plan_load("x", needing(9 * GIB), [], limits(vram=6.0, model=9.0), shared)
    assert (plan.fits, plan.advisory, plan.takes) == (True, True, Footprint(3 * GIB, 6 * GIB))
    busy = plan_load("x", needing(6 * GIB), [held("a", 4.0, busy=True)], limits(), shared)
    assert busy.reason.startswith("it would have to wait for a; the daemon was not started by this")
    over = plan_load("x", needing(6 * GIB), [held("a", 9.0, foreign=True)], limits(), shared)
    assert not over.fits and not over.refused


def test_a_need_that_was_measured() -> None:
    need = Need(2048, 100, 50, 30, "guessed")
    for seen, parts in ((200, (100, 50, 50)), (120, (100, 20, 0)), (60, (60, 0, 0))):
        known = as_measured(need, seen)
        assert (known.weights_bytes, known.kv_bytes, known.overhead_bytes) == parts
        assert (known.total, known.guess, known.num_ctx) == (seen, "", 2048)


def test_amounts_in_words() -> None:
    assert [gib(each) for each in (0, 300 << 20, GIB, 5 * GIB // 2)] == [
        "0 MiB",
        "300 MiB",
        "1.0 GiB",
        "2.5 GiB",
    ]
    assert budget(Footprint(-5, GIB)) == "0 MiB of RAM and 1.0 GiB of VRAM"
    assert [duration(each * SECOND) for each in (0, 119, 120, 600)] == [
        "0 s",
        "119 s",
        "2 min",
        "10 min",
    ]
