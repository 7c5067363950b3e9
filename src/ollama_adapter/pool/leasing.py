"""Leases: a request goes on at once where it can, else it waits; and it is sent with what the model has."""

from __future__ import annotations

from ollama_adapter.core.durations import keep_alive_ns
from ollama_adapter.core.ledger import Entry
from ollama_adapter.core.names import local_key
from ollama_adapter.core.reloading import Settled, readdress, settle
from ollama_adapter.core.requests import Request
from ollama_adapter.errors import (
    AdapterError,
    BudgetExceeded,
    InvalidModelFile,
    ModelLoadFailed,
    ModelNotFound,
    PoolError,
)
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.pool.admission import Admission
from ollama_adapter.pool.dispatch import Dispatch
from ollama_adapter.pool.lease import Lease
from ollama_adapter.pool.line import Line
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.planner import Planner
from ollama_adapter.pool.surroundings import Progress

REPLACEABLE = (ModelNotFound, BudgetExceeded, ModelLoadFailed, InvalidModelFile)
"""The errors after which another model may answer."""


class Leasing:
    """Gives the leases of one pool."""

    def __init__(
        self, parts: Parts, planner: Planner, line: Line, admission: Admission, dispatch: Dispatch
    ) -> None:
        self._config = parts.config
        self._surroundings = parts.surroundings
        self._ledger = parts.ledger
        self._planner = planner
        self._line = line
        self._admission = admission
        self._dispatch = dispatch
        self._clock = parts.clock
        self._herald = parts.herald

    def __repr__(self) -> str:
        return f"<Leasing of {self._ledger!r}>"

    async def acquire(
        self, request: Request, substitute: bool | None, on_progress: Progress | None
    ) -> Lease:
        """As ModelPool.acquire."""
        try:
            return await self._acquire(request, on_progress)
        except REPLACEABLE as error:
            if substitute is False:
                raise
            wanted = self._config.substitute if substitute is None else substitute
            return await self._acquire_other(request, error, wanted, on_progress)

    async def _acquire(self, request: Request, on_progress: Progress | None) -> Lease:
        key, now_ns = local_key(request.model), self._clock.now_ns()
        entry, demand, warm, queued_ns = self._ledger.find(key), None, True, 0
        while True:
            ready = entry is not None and entry.is_warm(self._clock.now_ns())
            if ready and entry is not None and demand is None and self._admission.admits(key):
                settled = self._settle(request, entry)
                if not settled.anew:
                    entry.users += 1
                    entry.last_used_ns = now_ns
                    self._herald.tell(on_progress, LoadProgress(request.model, LoadPhase.READY))
                    return self._lease(request, entry, settled, warm, queued_ns)
                demand = settled.reloading
            waiter = self._dispatch.waiter(
                works=True, keep_alive=request.keep_alive, on_progress=on_progress
            )
            granted = await self._dispatch.bring(
                request.model, key, request.reloading, demand, waiter
            )
            entry, warm = granted.entry, warm and granted.warm
            queued_ns += waiter.queued_ns
            try:
                settled = self._settle(request, entry)
            except BaseException:
                self.give_back(entry, used=False)
                raise
            if not settled.anew:
                return self._lease(request, entry, settled, warm, queued_ns)
            self.give_back(entry, used=False)
            demand = settled.reloading

    async def _acquire_other(
        self, request: Request, error: AdapterError, wanted: bool, on_progress: Progress | None
    ) -> Lease:
        """Another model, in the place of one that cannot be had; else the error, whose hint names some."""
        find = self._surroundings.substitutes
        found = await find(request, error) if find is not None else ()
        for each in found if wanted else ():
            other = readdress(request, each.served, request.reloading, request.keep_alive)
            try:
                lease = await self._acquire(other, on_progress)
            except (PoolError, ModelNotFound):
                error.hint = f"{each.served} could not be had either; {error.hint}"
                continue
            lease.substitution = each
            return lease
        raise error

    def _settle(self, request: Request, entry: Entry) -> Settled:
        if request.reloading == entry.reloading:
            return Settled(entry.reloading)
        held = self._planner.held(entry)
        return settle(request.model, request.reloading, held, self._config.reloading)

    def _lease(
        self, request: Request, entry: Entry, settled: Settled, warm: bool, queued_ns: int
    ) -> Lease:
        keep_alive = -1 if self._planner.keeps(entry) else request.keep_alive
        sent = readdress(request, request.model, settled.reloading, keep_alive)
        entry.keep_ns = keep_alive_ns(keep_alive)
        return Lease(
            sent,
            entry,
            self,
            warm=warm,
            queued_ms=queued_ns / 1e6,
            notes=settled.notes,
            vram_share=entry.vram_share,
        )

    def has(self, entry: Entry) -> bool:
        """As Lender."""
        return self._ledger.find(entry.key) is entry and not entry.missing

    def give_back(self, entry: Entry, *, used: bool) -> None:
        """As Lender."""
        entry.users -= 1
        if used:
            entry.use(self._clock.now_ns())
        self._line.changed()
