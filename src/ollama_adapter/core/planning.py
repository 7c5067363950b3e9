"""What loading a model does to the others: whether it fits, who has to go and why, who is waited for; pure.

A model that is busy, pinned or somebody else's is never evicted. Of the others those go first that were
used the longest ago, and those last that were used within the cool-down; between models that were used at
about the same time, the one that frees enough and is the quickest to load again. No model goes that could
stay. A model that the GPUs' budget can hold goes to the GPU as a whole, or is split only where nothing else
is possible: a model that is partly in RAM is slow for as long as it stays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Final

import msgspec
from msgspec import structs

from ollama_adapter.core.amounts import budget, duration, gib
from ollama_adapter.core.footprint import Need
from ollama_adapter.core.tiers import Limits
from ollama_adapter.events import Eviction, Footprint, LoadPlan

DISK_BYTES_PER_S: Final = 1e9
"""How fast a model is taken to be loaded, to compare two of which nothing was measured."""


class Resident(msgspec.Struct, frozen=True):
    """A model in memory, as a plan sees it. `load_s`: how long it took to load; None: not known."""

    name: str
    footprint: Footprint
    last_used_ns: int = 0
    busy: bool = False
    pinned: bool = False
    foreign: bool = False
    """It is not ours to unload."""
    load_s: float | None = None

    @property
    def movable(self) -> bool:
        """It goes, if need be, once it is idle."""
        return not self.pinned and not self.foreign

    @property
    def cost_s(self) -> float:
        """Of loading it again."""
        known = self.load_s
        return self.footprint.total / DISK_BYTES_PER_S if known is None else known


class Rules(msgspec.Struct, frozen=True):
    """What decides between models. `advisory`: the budget binds nobody, and is only told."""

    now_ns: int
    cooldown_ns: int = 0
    advisory: bool = False

    def is_hot(self, resident: Resident) -> bool:
        """Used within the cool-down."""
        return self.now_ns - resident.last_used_ns < self.cooldown_ns

    def rank(self, resident: Resident) -> tuple[bool, bool, int]:
        """The lower, the sooner it goes; equal for those that were used at about the same time."""
        step = max(1, self.cooldown_ns)
        return resident.busy, self.is_hot(resident), resident.last_used_ns // step


def as_measured(need: Need, total: int) -> Need:
    """The need of a model that was seen to take `total` bytes."""
    weights = min(need.weights_bytes, total)
    kv = min(need.kv_bytes, total - weights)
    return structs.replace(
        need, weights_bytes=weights, kv_bytes=kv, overhead_bytes=total - weights - kv, guess=""
    )


def plan_load(
    model: str,
    need: Need,
    residents: Sequence[Resident],
    limits: Limits,
    rules: Rules,
    expected_s: float | None = None,
) -> LoadPlan:
    """How `model` comes into memory. One of the residents may be itself: then it is loaded anew."""
    if not limits.budget.vram:  # no GPU that we know of: whatever is said to be there counts as RAM
        residents = [
            structs.replace(each, footprint=Footprint(each.footprint.total)) for each in residents
        ]
    scene = _Scene(model, need, residents, limits, rules)
    plan = LoadPlan(
        model,
        fits=True,
        reason="",
        resident=False,
        num_ctx=need.num_ctx,
        weights_bytes=need.weights_bytes,
        kv_bytes=need.kv_bytes,
        overhead_bytes=need.overhead_bytes,
        takes=Footprint(),
        used=_sum(residents),
        budget=limits.budget,
        expected_s=expected_s,
        advisory=rules.advisory,
    )
    why_not = too_large(need.weights_bytes, need.total, limits)
    found = None if why_not else scene.solve()
    if found is not None and rules.advisory and found.waits_for:
        why_not = f"it would have to wait for {' and '.join(found.waits_for)}"
    if found is None or why_not:
        return _refuse(plan, scene, why_not or scene.shortage())
    return replace(
        plan,
        takes=found.takes,
        evict=found.evict,
        waits_for=found.waits_for,
        reason=_reason(plan, found),
    )


def plan_relief(
    residents: Sequence[Resident], limits: Limits, rules: Rules
) -> tuple[Eviction, ...]:
    """Whom to evict where those in memory have outgrown the budget; nobody where that is no help."""
    bounds = replace(limits, resident=max(limits.resident, len(residents)) + 1)
    plan = plan_load("", Need(0, 0, 0, 0), residents, bounds, rules)
    why = "models in memory have grown beyond the budget"
    return tuple(replace(each, reason=f"{why}: {each.reason}") for each in plan.evict)


def too_large(weights_bytes: int, total: int, limits: Limits) -> str:
    """Why a model cannot be in memory, whoever else is; "" where it can."""
    most, room = limits.model_bytes, limits.budget
    if weights_bytes > most:
        return f"its file has {gib(weights_bytes)}, and the largest model that may be loaded {gib(most)}"
    return f"it takes {gib(total)}, and the whole budget is {budget(room)}" * (total > room.total)


def _refuse(plan: LoadPlan, scene: _Scene, why: str) -> LoadPlan:
    """It does not fit: which is no more than said where the daemon is not ours alone."""
    plan = replace(plan, fits=False, takes=Footprint(scene.need.total), reason=why)
    if not plan.advisory:
        return plan
    reason = f"{why}; the daemon was not started by this adapter, and decides by itself"
    mine = [Eviction(each.name, each.footprint, ANEW) for each in scene.mine if not each.busy]
    free = scene.free(scene.mine)
    vram = max(0, min(free.vram, scene.need.total))
    return replace(
        plan, takes=Footprint(scene.need.total - vram, vram), evict=tuple(mine), reason=reason
    )


ANEW: Final = "it is loaded anew with other options"


class _Solution(msgspec.Struct, frozen=True):
    takes: Footprint
    evict: tuple[Eviction, ...]
    waits_for: tuple[str, ...]


class _Scene:
    """One model that wants to come in, and those that are there."""

    def __init__(
        self, model: str, need: Need, residents: Sequence[Resident], limits: Limits, rules: Rules
    ) -> None:
        self.need = need
        self.mine = [each for each in residents if each.name == model]
        self._others = [each for each in residents if each.name != model]
        self._limits = limits
        self._rules = rules
        movable = [each for each in self._others if each.movable]
        self._candidates = sorted(movable, key=lambda each: (rules.rank(each), each.name))

    # Room

    def free(self, gone: Iterable[Resident]) -> Footprint:
        """The budget that is left when these have gone."""
        everything = _sum([*self.mine, *self._others])
        return self._limits.budget - (everything - _sum(gone))

    def place(self, gone: Sequence[Resident], *, whole: bool) -> Footprint | None:
        """Where it goes when these have gone; None where there is no room. `whole`: to the GPU."""
        if len(self._others) - len(gone) >= self._limits.resident:
            return None
        free, total = self.free([*gone, *self.mine]), self.need.total
        vram = total if whole else max(0, min(free.vram, total))
        takes = Footprint(total - vram, vram)
        return takes if takes.fits(free) else None

    # Who goes

    def solve(self) -> _Solution | None:
        idle = [each for each in self._candidates if not each.busy]
        fits_gpu = bool(self._limits.budget.vram) and self.need.total <= self._limits.budget.vram
        for whole in (True, False) if fits_gpu else (False,):
            for candidates in (idle, self._candidates):
                gone = self._choose(candidates, whole=whole)
                if gone is not None:
                    return self._solution(gone, candidates, whole=whole)
        return None

    def _choose(self, candidates: Sequence[Resident], *, whole: bool) -> list[Resident] | None:
        """The fewest of the first: none that could stay. None where not even all are enough."""
        if self.place(candidates, whole=whole) is None:
            return None
        gone: list[Resident] = []
        rank = self._rules.rank
        while self.place(gone, whole=whole) is None:
            left = [each for each in candidates if each not in gone]
            equals = [each for each in left if rank(each) == rank(left[0])]
            enough = [each for each in equals if self.place([*gone, each], whole=whole) is not None]
            gone.append(min(enough or equals, key=_cheapest))
        for each in sorted(gone, key=lambda each: (rank(each), each.cost_s), reverse=True):
            fewer = [other for other in gone if other is not each]
            if self.place(fewer, whole=whole) is not None:
                gone = fewer
        return gone

    def _solution(
        self, gone: Sequence[Resident], candidates: Sequence[Resident], *, whole: bool
    ) -> _Solution:
        takes = self.place(gone, whole=whole)
        assert takes is not None
        own = [each for each in self.mine if not each.busy and not each.foreign]
        evict = [Eviction(each.name, each.footprint, ANEW) for each in own]
        kept = [each for each in candidates if each not in gone]
        for each in gone:
            if not each.busy:
                evict.append(Eviction(each.name, each.footprint, self._why(each, kept)))
        waits_for = tuple(each.name for each in (*self.mine, *gone) if each.busy)
        return _Solution(takes, tuple(evict), waits_for)

    def _why(self, resident: Resident, kept: Sequence[Resident]) -> str:
        rules, rank = self._rules, self._rules.rank
        unused = f"unused for {duration(rules.now_ns - resident.last_used_ns)}"
        if rules.is_hot(resident):
            limit = duration(rules.cooldown_ns)
            return f"{unused}, which is within the cool-down of {limit}, but no other frees enough"
        if any(rank(each) < rank(resident) for each in kept):
            return f"{unused}; what is unused for longer frees too little"
        equals = [each for each in kept if rank(each) == rank(resident)]
        if any(each.cost_s < resident.cost_s for each in equals):
            return f"{unused}, like others, of which the quicker ones to load again free too little"
        if equals:
            return f"{unused}, like others, and the quickest to load again"
        return f"{unused}, longer than any other that may go"

    # Why not

    def shortage(self) -> str:
        """Why there is no room, though it could be in memory alone."""
        stay = [each for each in self._others if not each.movable]
        busy = [each.name for each in self._candidates if each.busy]
        pinned = [each.name for each in stay if each.pinned]
        foreign = [each.name for each in stay if not each.pinned]
        held = [
            f"{words} ({', '.join(names)})"
            for words, names in (
                ("pinned models", pinned),
                ("models that are not ours to unload", foreign),
                ("models at work", busy),
            )
            if names
        ]
        if len(stay) >= self._limits.resident:
            count = self._limits.resident
            most = f"{count} {'model' if count == 1 else 'models'} may be in memory"
            return f"{most}, and all of these stay: {' and '.join(held)}"
        left = self._limits.budget - _sum(stay)
        return (
            f"it takes {gib(self.need.total)}, and {budget(left)} can be had: "
            f"the rest of the budget is taken by {' and '.join(held)}"
        )


def _reason(plan: LoadPlan, found: _Solution) -> str:
    where = f"it takes {gib(found.takes.total)}"
    if found.takes.vram and found.takes.ram:
        where += f", of which {gib(found.takes.ram)} are in RAM, and slow"
    if found.waits_for:
        return f"{where}, once {_have(found.waits_for)} come to an end"
    if found.evict:
        return f"{where}, once {_have([each.model for each in found.evict])} gone"
    return f"{where}, and {budget(plan.budget - plan.used)} are free"


def _have(names: Sequence[str]) -> str:
    return f"{' and '.join(names)} {'has' if len(names) == 1 else 'have'}"


def _cheapest(resident: Resident) -> tuple[float, int, int, str]:
    return resident.cost_s, resident.footprint.total, resident.last_used_ns, resident.name


def _sum(residents: Iterable[Resident]) -> Footprint:
    return sum((each.footprint for each in residents), Footprint())
