"""ModelPool: the public face. State is in the ledger, decisions are core's, steps the admission's.

A request for a model that is in memory goes on at once. Any other one joins the errand of its model: one
load, however many ask, which nobody's abort ends while others wait for it. What a model was loaded with is
what every request for it is sent with.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.amounts import gib
from ollama_adapter.core.durations import keep_alive_ns
from ollama_adapter.core.ledger import Entry, Ledger
from ollama_adapter.core.names import local_key, local_name, parse_name
from ollama_adapter.core.reloading import check_options
from ollama_adapter.core.requests import Request
from ollama_adapter.events import (
    Change,
    Footprint,
    LoadPlan,
    ResidencyChange,
    ResidentModel,
)
from ollama_adapter.pool.admission import Admission
from ollama_adapter.pool.catalogue import Catalogue
from ollama_adapter.pool.dispatch import Dispatch
from ollama_adapter.pool.herald import Herald
from ollama_adapter.pool.lease import Lease
from ollama_adapter.pool.leasing import Leasing
from ollama_adapter.pool.line import Line
from ollama_adapter.pool.loading import Loader
from ollama_adapter.pool.moving import Mover
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.planner import Planner
from ollama_adapter.pool.surroundings import Progress, Surroundings
from ollama_adapter.pool.watch import Watch
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope


class ModelPool:
    """The models of one daemon; `forget` when that one has ended."""

    def __init__(
        self,
        config: PoolConfig,
        client: OllamaClient,
        scope: TaskScope,
        clock: Clock,
        surroundings: Surroundings | None = None,
    ) -> None:
        self._config = config
        self._clock = clock
        self.surroundings = around = surroundings or Surroundings()
        self._catalogue = Catalogue(client)
        self._ledger = Ledger()
        self._herald = Herald()
        parts = Parts(
            config, client, scope, clock, around, self._catalogue, self._ledger, self._herald
        )
        self._planner = planner = Planner(parts)
        planner.pinned.update(parse_name(each).key for each in config.pinned)
        self._line = line = Line(parts)
        mover = Mover(parts)
        self._loader = Loader(parts, planner, line, mover)
        self._admission = Admission(parts, planner, line, mover, self._loader)
        self._dispatch = Dispatch(parts, self._admission, line, Watch(parts, self._admission))
        self._leasing = Leasing(parts, planner, line, self._admission, self._dispatch)

    def __repr__(self) -> str:
        resident, busy = len(self._ledger.entries), len(self._ledger.at_work())
        taken = gib(self._ledger.taken().total)
        loading = self._dispatch.under_way().total()
        return f"<ModelPool {resident} resident, {busy} busy, {loading} loading, {taken}>"

    # Requests

    async def acquire(
        self,
        request: Request,
        *,
        substitute: bool | None = None,
        on_progress: Progress | None = None,
    ) -> Lease:
        """The request's model in memory, and busy until the lease is released.

        `substitute`: whether another model may serve (None: as pool.substitute says). `on_progress` is
        told how far it is, from the queue to ready. Raises ModelNotFound,
        RemoteModelRefused, ModelLoadFailed, BudgetExceeded, ServerBusy where too many wait or for too long,
        InvalidRequest where its options would load the model anew and must not. Cancelling is safe:
        nothing is held then, and the load is left to others who wait for it, if any.
        """
        return await self._leasing.acquire(request, substitute, on_progress)

    # Models

    async def ensure_loaded(
        self,
        model: str,
        *,
        keep_alive: str | float | None = None,
        reloading: Mapping[str, Any] | None = None,
        on_progress: Progress | None = None,
    ) -> bool:
        """Until the model is in memory; True when it was there already.

        `reloading` are the options that decide how it is loaded, such as num_ctx: a model that was loaded
        with others is loaded anew. The daemon is told a `keep_alive` that is given also of a model that is
        there: it stays for so long from then on (but for 0, which is for requests: `unload` ends a stay at
        once). Raises as acquire does. Cancelling leaves the load to others, if any.
        """
        key = local_key(model)
        if reloading:
            check_options(reloading)
        alive = self._config.keep_alive if keep_alive is None else keep_alive
        renews = keep_alive is not None and keep_alive_ns(keep_alive) != 0
        if not renews and self.is_warm(model, reloading or {}) and not self._line.closed(key):
            return True
        name = local_name(model)
        demand = dict(reloading) if reloading else None
        waiter = self._dispatch.waiter(
            works=False, keep_alive=alive, on_progress=on_progress, renews=renews
        )
        granted = await self._dispatch.bring(str(name), key, demand or {}, demand, waiter)
        return granted.warm

    async def unload(self, model: str) -> None:
        """Until the model has gone from memory, once it is idle; nothing for one that is not there.

        Raises ServerBusy where it does not become idle within pool.queue_s. Cancelling is safe.
        """
        name = local_name(model)
        await self._dispatch.unload(str(name), name.key, 0)

    async def pin(self, model: str, **reloading: Any) -> None:
        """Load the model, for good: it is not evicted, and its keep-alive does not end.

        Raises as acquire; then, and when it is cancelled, the model is as little pinned as before.
        """
        key = local_key(model)
        before = key in self._planner.pinned
        self._planner.pinned.add(key)
        try:
            await self.ensure_loaded(model, keep_alive=-1, reloading=reloading)
        except BaseException:
            if not before:
                self._planner.pinned.discard(key)
            raise

    async def unpin(self, model: str) -> None:
        """From now on the model may go, and its keep-alive begins. Raises as acquire.

        A model in memory that somebody else keeps there for good is given a keep-alive, too.
        """
        key = local_key(model)
        self._planner.pinned.discard(key)
        if self._ledger.find(key) is None:
            await self._admission.look()
        if self._ledger.find(key) is None:
            return
        if keep_alive_ns(self._config.keep_alive):
            await self.ensure_loaded(model, keep_alive=self._config.keep_alive)
        else:
            await self.unload(model)

    async def plan(self, model: str, num_ctx: int | None = None) -> LoadPlan:
        """What loading the model would do, and why, from what the daemon lists now. Cancelling is safe."""
        name = local_name(model)
        options = {} if num_ctx is None else {"num_ctx": num_ctx}
        check_options(options)
        await self._catalogue.describe(str(name), name.key)
        await self._admission.look()
        return self._planner.plan(name.key, str(name), options)

    @property
    def history(self) -> list[LoadPlan]:
        """The latest plans as they were carried out: `takes` is what the daemon has listed afterwards."""
        return list(self._loader.done)

    # What is known

    def is_warm(self, model: str, reloading: Mapping[str, Any]) -> bool:
        """In memory, as far as we know, with what these options ask for."""
        entry = self._ledger.find(local_key(model))
        if entry is None or not entry.is_warm(self._clock.now_ns()):
            return False
        return not reloading or self._planner.serves(entry, reloading)

    def is_loading(self, model: str) -> bool:
        """Somebody waits for it, with whatever options."""
        return local_key(model) in self._dispatch.under_way()

    def residents(self) -> list[ResidentModel]:
        """What is in memory, as far as we know, in the order in which it came."""
        keeps = self._planner.keeps
        return [
            ResidentModel(
                each.name,
                each.footprint,
                each.num_ctx,
                each.users,
                keeps(each),
                each.foreign,
                each.last_used_ns,
                each.until_ns,
            )
            for each in self._ledger.entries.values()
            if each.listed or each.users
        ]

    def on_change(self, callback: Callable[[ResidencyChange], None]) -> None:
        """Call back for every change in memory. What the callback raises is logged."""
        self._herald.on_change(callback)

    def changes(self) -> AsyncIterator[ResidencyChange]:
        """Every change in memory from this call on, until the pool is closed."""
        return self._herald.changes()

    def on_progress(self, callback: Progress) -> None:
        """Call back for the progress of every load."""
        self._herald.on_progress(callback)

    def at_work(self) -> Counter[str]:
        """How many hold or await each model, by the keys of the models."""
        return self._ledger.users() + self._dispatch.under_way()

    def known(self, model: str) -> Mapping[str, Any]:
        """What /api/show has said of the model; nothing where it was not asked."""
        return self._catalogue.known(local_key(model))

    def digest(self, model: str) -> str:
        """Of a model, as it was last seen; "" for one that was not."""
        return self._catalogue.digest(local_key(model))

    async def describe(self, model: str) -> dict[str, Any]:
        """What /api/show says. Raises ModelNotFound, RemoteModelRefused. Cancelling is safe."""
        return await self._catalogue.describe(model, local_key(model))

    # What others tell

    def used(self, model: str, reloading: Mapping[str, Any], keep_alive: str | float) -> None:
        """A request for the model has been answered: it stays for `keep_alive` from now on."""
        name = local_name(model)
        entry = self._ledger.entries.setdefault(name.key, Entry(str(name), name.key))
        entry.reloading = dict(reloading) or entry.reloading
        entry.use(self._clock.now_ns(), keep_alive_ns(keep_alive))
        entry.doubtful = entry.until_ns <= self._clock.now_ns()

    def renewed(self, model: str) -> None:
        """The files of a model may be others now: what was known of it is asked anew."""
        key = local_name(model).key
        self._catalogue.forget(key)
        if (entry := self._ledger.find(key)) is not None:
            entry.doubtful = True

    def forget(self) -> None:
        """The daemon is another one, or has ended: nothing is resident.

        A load that is under way may be the next one's already, and then has to be seen to be ours.
        """
        entries = self._ledger.clear()
        for each in entries:
            if each.loading and not each.users:
                self._ledger.entries[each.key] = each
        self._catalogue.forget()
        now_ns, why = self._clock.now_ns(), "the daemon that held it has ended"
        for each in entries:
            if each.listed:
                change = ResidencyChange(
                    each.name, Change.UNLOADED_ELSEWHERE, Footprint(), why, now_ns
                )
                self._herald.publish(change)
            each.listed, each.doubtful = False, True
        self._line.changed()

    def close(self) -> None:
        """No more changes: the streams of them end. Idempotent."""
        self._herald.end()
