"""How an errand is carried out: a place to work, room in memory, the model; one at a time, in order.

Plans are made synchronously, from what the daemon has just listed, and followed to the letter; after each
step the daemon is asked again. Whom a plan evicts or waits for is closed to newcomers from that moment on.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Final

from ollama_adapter.config import Pulling
from ollama_adapter.core.ledger import Entry
from ollama_adapter.errors import BudgetExceeded, ModelNotFound
from ollama_adapter.events import (
    Change,
    LoadPlan,
)
from ollama_adapter.pool.line import Errand, Line, Stage
from ollama_adapter.pool.loading import Loader
from ollama_adapter.pool.moving import Mover
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.planner import Planner

log = logging.getLogger("ollama_adapter")

TRIES: Final = 3
"""How often a load is planned anew, because the model was larger than planned or somebody was in the way."""
ON_REQUEST: Final = "it was asked for"


class Admission:
    """The one writer of the ledger while models move."""

    def __init__(
        self, parts: Parts, planner: Planner, line: Line, mover: Mover, loader: Loader
    ) -> None:
        self._config = parts.config
        self._surroundings = parts.surroundings
        self._catalogue = parts.catalogue
        self._ledger = parts.ledger
        self._planner = planner
        self._line = line
        self._mover = mover
        self._loader = loader
        self._clock = parts.clock
        self._herald = parts.herald
        self._warned = False
        self._turn: Errand | None = None
        self._turns = 0

    def __repr__(self) -> str:
        return f"<Admission {self._line!r}>"

    # Asked by everybody

    def has_place(self, key: str) -> bool:
        """The model works already, or one more may."""
        working = self._ledger.at_work()
        working.update(each.key for each in self._line.errands if each.has_place)
        return key in working or len(working) < self._surroundings.limits().parallel

    def admits(self, key: str) -> bool:
        """Whether a newcomer may work with a model that is in memory, at once."""
        if self._line.closed(key):
            return False
        entry = self._ledger.find(key)
        if entry is not None and entry.users:
            return True
        ahead = any(each.stage is Stage.PLACE for each in self._line.errands)
        return not ahead and self.has_place(key)

    def abandon(self, errand: Errand) -> None:
        """Its event loop was closed under it."""
        if self._turn is errand:
            self._turn = None

    async def look(self) -> None:
        """Ask the daemon what is in memory, unless somebody is moving models, who asks himself."""
        turns = self._turns
        if self._turn is None or self._turn.queued:
            listed = await self._mover.look()
            if turns == self._turns:  # else it is old
                self._mover.believe(listed)
                self._line.changed()

    async def relieve(self) -> None:
        """Where models have grown beyond the budget, others go. Raises what the daemon says."""
        if not self._planner.relief():
            return
        errand = Errand("", "")
        self._line.errands.append(errand)
        try:
            async with self._take_turn(errand):
                await self._mover.refresh()
                await self._loader.evict_all(errand, self._planner.relief())
        finally:
            self._line.leave(errand)

    # Errands

    async def carry_out(self, errand: Errand) -> tuple[Entry, bool]:
        """The model in memory, and whether it was there. Raises what the daemon says, and PoolError."""
        await self._prepare(errand)
        warm = True
        while True:
            if errand.works and not errand.has_place:
                errand.stage = Stage.PLACE
                await self._line.wait(errand, lambda: self._takes_place(errand))
            entry = self._ledger.find(errand.key)
            if not self._is_ready(entry, errand):
                entry, was_there = await self._bring(errand)
                warm = warm and was_there
            if entry is not None and not (errand.works and not errand.has_place):
                return entry, warm

    async def unload(self, errand: Errand) -> None:
        """Once it is idle. Nothing for a model that is not in memory."""
        async with self._take_turn(errand):
            await self._mover.refresh()
            entry = self._ledger.find(errand.key)
            if entry is None:
                return
            errand.closing = frozenset({errand.key})
            await self._wait(errand, lambda: not entry.users)
            if self._ledger.find(errand.key) is not entry:  # it has gone meanwhile
                return
            embeds = self._catalogue.embeds(errand.key)
            if not await self._mover.evict(entry, Change.UNLOADED, ON_REQUEST, embeds=embeds):
                raise BudgetExceeded(
                    f"{entry.name} could not be unloaded: somebody else uses it, or it was deleted",
                    hint="it goes when it has become idle, or its keep-alive ends",
                )

    async def _prepare(self, errand: Errand) -> None:
        try:
            await self._catalogue.describe(errand.model, errand.key)
        except ModelNotFound:
            pull = self._surroundings.pull
            if pull is None or self._config.pulling is not Pulling.ALWAYS:
                raise
            await pull(errand.model, lambda progress: self._herald.tell_all(errand, progress))
            await self._catalogue.describe(errand.model, errand.key)

    def _takes_place(self, errand: Errand) -> bool:
        """A place to work, if there is one; else one of those at work is to come to an end."""
        errand.closing = frozenset()
        if self._line.closed(errand.key, but=errand) or not self._line.is_first(errand):
            return False
        if self.has_place(errand.key):
            errand.has_place = True
            return True
        users = [each for each in self._ledger.entries.values() if each.users]
        reserved = {each.key for each in self._line.errands if each.has_place}
        ending = [each for each in users if each.key not in reserved]
        if ending:
            first = min(ending, key=lambda each: (each.last_used_ns, each.key))
            errand.closing = frozenset({first.key})
        return False

    def _is_ready(self, entry: Entry | None, errand: Errand) -> bool:
        if entry is None or errand.renews or not entry.is_warm(self._clock.now_ns()):
            return False
        if self._line.closed(errand.key, but=errand):
            return False
        return self._suits(entry, errand)

    def _suits(self, entry: Entry, errand: Errand) -> bool:
        return errand.demand is None or self._planner.serves(entry, errand.demand)

    async def _bring(self, errand: Errand) -> tuple[Entry, bool]:
        async with self._take_turn(errand):
            await self._ask(errand)
            for _ in range(TRIES):
                entry = self._ledger.find(errand.key)
                if entry is not None and self._suits(entry, errand):
                    return entry, await self._loader.confirm(errand, entry)
                plan = await self._until_possible(errand)
                if plan.resident:  # somebody else has loaded it meanwhile
                    continue
                if (entry := await self._loader.follow(errand, plan)) is not None:
                    return entry, False
            raise BudgetExceeded(
                f"{errand.model} could not be brought into memory within the budget",
                hint="`ollama-adapter ps` tells what is there, and who else uses the daemon",
            )

    @contextlib.asynccontextmanager
    async def _take_turn(self, errand: Errand) -> AsyncIterator[None]:
        """Only one errand at a time moves models."""
        errand.stage, errand.closing = Stage.MEMORY, frozenset()
        await self._line.wait(errand, lambda: self._turn is None and self._line.is_first(errand))
        self._turn = errand
        self._turns += 1
        try:
            yield
        finally:
            if self._turn is errand:  # else its loop was closed, and the turn is another's
                self._turn = None
                self._turns += 1
            errand.closing = frozenset()
            self._line.changed()

    async def _ask(self, errand: Errand) -> None:
        """The daemon of this moment, of the model and of memory."""
        await self._catalogue.describe(errand.model, errand.key)
        await self._mover.refresh()
        entry = self._ledger.find(errand.key)
        errand.held = errand.held or (entry is not None and entry.held)

    async def _wait(self, errand: Errand, possible: Callable[[], bool]) -> bool:
        """Within a turn: others look at memory meanwhile, and are too late from then on."""
        waited = await self._line.wait(errand, possible)
        self._turns += 1
        return waited

    async def _until_possible(self, errand: Errand) -> LoadPlan:
        """A plan that waits for nobody, of what was listed just now. Raises BudgetExceeded, ServerBusy."""
        plans: list[LoadPlan] = []

        def possible() -> bool:
            if not self._catalogue.known(errand.key):  # the daemon is another one: it is asked anew
                return True
            plan = self._planner.plan(errand.key, errand.model, errand.options)
            going = [*(each.model for each in plan.evict), *plan.waits_for]
            errand.closing = frozenset(map(str.lower, going))
            plans.append(plan)
            return plan.refused or not plan.waits_for

        errand.stage = Stage.MEMORY
        while await self._wait(errand, possible) or not self._catalogue.known(errand.key):
            await self._ask(errand)
        plan = plans[-1]
        if plan.refused:
            raise _too_large(plan)
        if not plan.fits and not self._warned:
            self._warned = True
            log.warning("the memory budget is only advice here: %s", plan.reason)
        return plan


def _too_large(plan: LoadPlan) -> BudgetExceeded:
    return BudgetExceeded(
        f"{plan.model} does not fit into memory: {plan.reason}",
        hint="use a smaller model or a smaller num_ctx, unload or unpin others, or raise the budget: "
        f"`ollama-adapter plan {plan.model}` tells more",
    )
