"""A plan, followed: evict whom it names, load, and compare with the plan what the daemon then lists."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from ollama_adapter.core.amounts import gib
from ollama_adapter.core.durations import keep_alive_ns
from ollama_adapter.core.ledger import Entry
from ollama_adapter.core.names import weights_of
from ollama_adapter.core.requests import load_request
from ollama_adapter.events import (
    Change,
    Eviction,
    Footprint,
    LoadPhase,
    LoadPlan,
    LoadProgress,
    ResidencyChange,
)
from ollama_adapter.pool.line import Errand, Line, Stage
from ollama_adapter.pool.moving import Mover
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.planner import Planner

REMEMBERED: Final = 256


class Loader:
    """Works for one errand at a time. `done` are the plans as they were carried out, the latest last."""

    def __init__(self, parts: Parts, planner: Planner, line: Line, mover: Mover) -> None:
        self._surroundings = parts.surroundings
        self._catalogue = parts.catalogue
        self._ledger = parts.ledger
        self._planner = planner
        self._line = line
        self._mover = mover
        self._clock = parts.clock
        self._herald = parts.herald
        self.done: deque[LoadPlan] = deque(maxlen=REMEMBERED)

    def __repr__(self) -> str:
        return f"<Loader, {len(self.done)} plans carried out>"

    async def follow(self, errand: Errand, plan: LoadPlan) -> Entry | None:
        """The model in memory; None where that has to be planned anew, with what was learned meanwhile."""
        if not await self.evict_all(errand, plan.evict):
            return None
        entry = await self._load(errand, plan)
        self.done.append(replace(plan, takes=entry.footprint))
        if self._holds(entry, plan):
            return entry
        why = f"it takes {gib(entry.footprint.total)}, which is more than was planned"
        await self._evict(Eviction(entry.name, entry.footprint, why))
        return None

    async def evict_all(self, errand: Errand, evictions: Sequence[Eviction]) -> bool:
        """Whether they have gone; nobody begins to use them meanwhile."""
        errand.stage = Stage.MOVING
        errand.closing = frozenset(each.model.lower() for each in evictions)
        gone = [await self._evict(each) for each in evictions]
        errand.closing = frozenset()
        return all(gone)

    async def confirm(self, errand: Errand, entry: Entry) -> bool:
        """Make sure that a model which is listed is there, and stays; whether we knew that it was."""
        errand.stage = Stage.MOVING
        was_there = not (entry.doubtful or entry.missing)
        if keep_alive_ns(self._keep_alive(errand)):
            entry.loading = True
            await self._send(errand, entry, None)
        return was_there

    async def _evict(self, eviction: Eviction) -> bool:
        entry = self._ledger.find(eviction.model.lower())
        if entry is None:
            return True
        embeds = self._catalogue.embeds(entry.key)
        return await self._mover.evict(entry, Change.EVICTED, eviction.reason, embeds=embeds)

    async def _load(self, errand: Errand, plan: LoadPlan) -> Entry:
        entry = self._enter(errand, plan)
        if not keep_alive_ns(self._keep_alive(errand)):  # an empty request would unload it
            return entry  # and the prompt itself loads it
        entry.loading = True
        began_ns = self._clock.now_ns()
        await self._send(errand, entry, plan.expected_s)
        entry.load_s = (self._clock.now_ns() - began_ns) / 1e9
        self._planner.learn(entry)
        self._tell(entry, Change.LOADED, plan.reason)
        if entry.listed and entry.footprint.vram < plan.takes.vram:
            why = f"{gib(entry.footprint.ram)} of it are in RAM, and should be on the GPU"
            self._tell(entry, Change.FELL_BACK_TO_CPU, why)
        return entry

    def _enter(self, errand: Errand, plan: LoadPlan) -> Entry:
        """Into the ledger, as planned; one that is in use (where budgets are advice) stays the same."""
        entry = self._ledger.find(errand.key)
        if entry is None or not entry.users:
            digest = self._catalogue.digest(errand.key)
            entry = self._ledger.entries[errand.key] = Entry(errand.model, errand.key, digest)
        entry.reloading, entry.footprint = errand.options, plan.takes
        entry.num_ctx, entry.held = plan.num_ctx, errand.held
        return entry

    def _keep_alive(self, errand: Errand) -> str | float:
        """As all who wait wish at this moment."""
        for_good = errand.key in self._planner.pinned or (errand.held and not errand.renews)
        return -1 if for_good else errand.keep_alive

    async def _send(self, errand: Errand, entry: Entry, expected_s: float | None) -> None:
        """The request that loads; afterwards the entry is as the daemon lists it."""
        weights = weights_of(self._catalogue.known(errand.key))
        began_ns = self._clock.now_ns()

        def tell() -> None:
            elapsed_s = (self._clock.now_ns() - began_ns) / 1e9
            self._herald.tell_all(
                errand,
                LoadProgress(
                    errand.model, LoadPhase.LOADING, elapsed_s=elapsed_s, expected_s=expected_s
                ),
            )

        tell()
        try:
            sent_ns, embeds = 0, self._catalogue.embeds(errand.key)
            while keep_alive_ns(wish := self._keep_alive(errand)) not in (0, sent_ns):
                sent_ns = keep_alive_ns(wish)  # who joins meanwhile may wish for another
                request = load_request(errand.model, wish, entry.reloading, embedding=embeds)
                entry.doubtful = entry.stuck = False
                await self._mover.load(request, self._surroundings.activity, weights, tell)
                entry.use(self._clock.now_ns(), sent_ns)
                await self._mover.refresh()
        except BaseException:
            entry.doubtful, entry.until_ns = True, 0
            raise
        finally:
            entry.loading = False
            self._line.changed()

    def _holds(self, entry: Entry, plan: LoadPlan) -> bool:
        """Whether the model is as large as planned, or at least within the budget."""
        room, taken, takes = plan.budget, self._ledger.taken(), entry.footprint
        if not room.vram:
            taken, takes = Footprint(taken.total), Footprint(takes.total)
        return plan.advisory or takes.fits(plan.takes) or taken.fits(room)

    def _tell(self, entry: Entry, change: Change, why: str) -> None:
        now_ns = self._clock.now_ns()
        self._herald.publish(ResidencyChange(entry.name, change, entry.footprint, why, now_ns))
