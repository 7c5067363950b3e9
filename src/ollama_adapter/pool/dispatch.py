"""Requests that wait for a model share an errand; one that nobody waits for any more is given up."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

from ollama_adapter.errors import AdapterError, PoolError
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.pool.admission import Admission
from ollama_adapter.pool.line import Errand, Granted, Line, Waiter
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.surroundings import Progress
from ollama_adapter.pool.watch import Watch
from ollama_adapter.system.scope import is_orphan


class Dispatch:
    """Owner of the errands' tasks, which are children of the scope."""

    def __init__(self, parts: Parts, admission: Admission, line: Line, watch: Watch) -> None:
        self._admission = admission
        self._line = line
        self._ledger = parts.ledger
        self._scope = parts.scope
        self._clock = parts.clock
        self._herald = parts.herald
        self._watch = watch

    def __repr__(self) -> str:
        return f"<Dispatch {self._line!r}>"

    def under_way(self) -> Counter[str]:
        """How many errands there are, by the keys of the models."""
        return Counter(each.key for each in self._line.errands if each.key)

    def waiter(
        self,
        *,
        works: bool,
        keep_alive: str | float,
        on_progress: Progress | None,
        renews: bool = False,
    ) -> Waiter:
        future: asyncio.Future[Granted] = asyncio.get_running_loop().create_future()
        return Waiter(future, works, keep_alive, on_progress, self._clock.now_ns(), renews)

    async def bring(
        self,
        model: str,
        key: str,
        asked: Mapping[str, Any],
        demand: Mapping[str, Any] | None,
        waiter: Waiter,
    ) -> Granted:
        """The model in memory; one that works holds it busy from then on. Cancelling gives it back.

        An errand that was joined may fail for the options of whoever began it: then another one is begun.
        """
        own = asked if demand is None else demand
        while True:
            errand = self._join(model, key, asked, demand, waiter)
            try:
                return await waiter.future
            except PoolError:
                if errand.options == own:
                    raise
                waiter.future = asyncio.get_running_loop().create_future()
            except BaseException:
                self._leave(errand, waiter)
                raise

    async def unload(self, model: str, key: str, keep_alive: str | float) -> None:
        """Raises ServerBusy, BudgetExceeded where it does not go. Cancelling is safe."""
        self._clear_orphans()
        waiter = self.waiter(works=False, keep_alive=keep_alive, on_progress=None)
        errand = Errand(model, key, waiters=[waiter], demand={"": ""})  # nobody shares it
        self._line.errands.append(errand)
        try:
            await self._admission.unload(errand)
        finally:
            self._line.leave(errand)

    def _join(
        self,
        model: str,
        key: str,
        asked: Mapping[str, Any],
        demand: Mapping[str, Any] | None,
        waiter: Waiter,
    ) -> Errand:
        self._clear_orphans()
        for errand in self._line.errands:
            if errand.key == key and errand.task is not None and errand.takes(demand):
                if errand.queued:
                    self._line.check_room(errand, 1)
                    progress = LoadProgress(model, LoadPhase.QUEUED, errand.position)
                    self._herald.tell(waiter.on_progress, progress)
                errand.waiters.append(waiter)
                self._line.changed()
                return errand
        errand = Errand(model, key, dict(asked), demand, [waiter])
        errand.task = task = self._scope.spawn(self._run(errand), "model load")
        self._line.errands.append(errand)
        task.add_done_callback(lambda task: _ended(task, errand))
        return errand

    async def _run(self, errand: Errand) -> None:
        try:
            entry, warm = await self._admission.carry_out(errand)
        except AdapterError as error:
            errand.fail(error)
        else:
            self._grant(errand, Granted(entry, warm))
            self._watch.ensure_started()
        finally:
            self._line.leave(errand)

    def _grant(self, errand: Errand, granted: Granted) -> None:
        """Without a step in between: nobody may evict it any more."""
        entry = granted.entry
        entry.users += sum(each.works and not each.future.done() for each in errand.waiters)
        if (
            not entry.users and not entry.listed and not entry.until_ns
        ):  # for a prompt that never comes
            self._ledger.entries.pop(entry.key, None)
        for each in errand.waiters:
            if not each.future.done():
                each.future.set_result(granted)
        self._herald.tell_all(errand, LoadProgress(errand.model, LoadPhase.READY))
        errand.waiters.clear()

    def _leave(self, errand: Errand, waiter: Waiter) -> None:
        future = waiter.future
        if future.done() and not future.cancelled() and future.exception() is None:
            if waiter.works:  # it was granted at the very moment when it was given up
                future.result().entry.users -= 1
                self._line.changed()
            return
        if waiter in errand.waiters:
            errand.waiters.remove(waiter)
        task = errand.task
        if not errand.waiters and task is not None and not task.done():
            self._line.leave(errand)  # who comes now starts anew
            if not is_orphan(task):
                task.cancel()

    def _clear_orphans(self) -> None:
        """Errands of an event loop that was closed under them will never end."""
        for errand in list(self._line.errands):
            if errand.loop.is_closed():
                self._line.leave(errand)
                self._admission.abandon(errand)


def _ended(task: asyncio.Task[None], errand: Errand) -> None:
    """Nobody waits for ever: neither where the scope was closed, nor where a fault of ours ended it."""
    if task.cancelled():
        errand.fail(AdapterError("this adapter has been closed", hint="make a new one"))
    elif task.exception() is not None:
        errand.fail(AdapterError(f"the pool broke ({type(task.exception()).__name__})"))
