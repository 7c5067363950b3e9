"""Who waits for memory, or for a place to work: in order, visibly, and not without end.

An errand is what one model needs on behalf of all that wait for it. Those it waits for are closed to
newcomers, so that whoever is first is not overtaken for ever.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from ollama_adapter.core.durations import FOREVER_NS, keep_alive_ns
from ollama_adapter.core.ledger import Entry
from ollama_adapter.errors import AdapterError, ServerBusy
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.surroundings import Progress
from ollama_adapter.system.clock import reach
from ollama_adapter.veiled import Veiled


class Stage(StrEnum):
    """What an errand is about."""

    PREPARING = "preparing"
    PLACE = "a place to work"
    MEMORY = "memory"
    MOVING = "moving"


class Granted(msgspec.Struct, frozen=True):
    """The model is in memory; `warm`: it was there already."""

    entry: Entry
    warm: bool


class Waiter(msgspec.Struct, eq=False):
    """One request. `works`: it needs a place to work, not only the model in memory. `renews`: the daemon
    has to be told its keep-alive, also of a model that is there.
    """

    future: asyncio.Future[Granted]
    works: bool
    keep_alive: str | float
    on_progress: Progress | None
    since_ns: int
    renews: bool = False
    queued_ns: int = 0
    deadline_ns: int = 0

    def fail(self, error: AdapterError) -> None:
        if not self.future.done():
            self.future.set_exception(error)
            self.future.exception()  # whoever awaits it is told; he may just be going


class Errand(Veiled, msgspec.Struct, eq=False):
    """`demand`: the model has to have exactly these options; else `asked` are for the case that it is not
    there. `closing` are the keys of the models that it waits for, or is about to evict.
    """

    model: str
    key: str
    asked: Mapping[str, Any] = msgspec.field(default_factory=dict)
    demand: Mapping[str, Any] | None = None
    waiters: list[Waiter] = msgspec.field(default_factory=list)
    stage: Stage = Stage.PREPARING
    has_place: bool = False
    closing: frozenset[str] = frozenset()
    held: bool = False
    """Somebody else keeps the model for good, also where it has to be loaded anew."""
    queued: bool = False
    admitted: bool = False
    """It has waited before, and is not sent away where it has to wait once more."""
    position: int = 0
    task: asyncio.Task[None] | None = None
    """None where nobody can join it."""
    loop: asyncio.AbstractEventLoop = msgspec.field(default_factory=asyncio.get_running_loop)

    @property
    def works(self) -> bool:
        return any(each.works for each in self.waiters)

    @property
    def renews(self) -> bool:
        return any(each.renews for each in self.waiters)

    @property
    def options(self) -> Mapping[str, Any]:
        """What the model is loaded with, if it has to be."""
        return self.asked if self.demand is None else self.demand

    @property
    def keep_alive(self) -> str | float:
        """The longest that is asked for."""
        return max((each.keep_alive for each in self.waiters), key=keep_alive_ns, default=0)

    def takes(self, demand: Mapping[str, Any] | None) -> bool:
        """Whether somebody who wants that may wait here."""
        if demand is None or self.demand == demand:
            return True
        return self.demand is None and self.asked == demand

    def fail(self, error: AdapterError) -> None:
        for each in self.waiters:
            each.fail(_twin(error))
        self.waiters.clear()


def _twin(error: AdapterError) -> AdapterError:
    """The same for another who waits: each adds to its hint, and has a traceback, of its own."""
    twin = type(error).__new__(type(error), *error.args)
    twin.__dict__.update(error.__dict__)
    twin.__cause__ = error.__cause__
    return twin


class Line:
    """The errands that are under way, in the order in which they came."""

    def __init__(self, parts: Parts) -> None:
        self._clock = parts.clock
        self._length = parts.config.queue_length
        self._limit_s = parts.config.queue_s
        self._herald = parts.herald
        self.errands: list[Errand] = []
        self._waiting: list[asyncio.Future[None]] = []

    def __repr__(self) -> str:
        return f"<Line of {len(self.errands)} errands, {self.waiting} requests wait>"

    @property
    def waiting(self) -> int:
        """How many requests wait in it."""
        return sum(len(each.waiters) for each in self.errands if each.queued)

    def closed(self, key: str, but: Errand | None = None) -> bool:
        """The model takes no newcomers: somebody (`but` this one) waits for it to become idle."""
        return any(key in each.closing for each in self.errands if each is not but)

    def is_first(self, errand: Errand) -> bool:
        """Of those that are about the same."""
        return next(each for each in self.errands if each.stage is errand.stage) is errand

    def leave(self, errand: Errand) -> None:
        """It is done, or given up. Idempotent."""
        errand.closing, errand.queued, errand.has_place = frozenset(), False, False
        if errand in self.errands:
            self.errands.remove(errand)
        self.changed()

    def check_room(self, errand: Errand, newcomers: int) -> None:
        """Raises ServerBusy where so many more may not wait."""
        if self.waiting + newcomers > self._length:
            raise ServerBusy(
                f"{self.waiting} requests wait for memory or for a place to work already, "
                f"and {errand.model} would be one too many",
                status=503,
                model=errand.model,
                hint="ask again in a moment; pool.queue_length is how many may wait",
            )

    def changed(self) -> None:
        """Something may be possible now that was not: everybody tries again."""
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            if not each.get_loop().is_closed():
                reach(each)

    async def wait(self, errand: Errand, possible: Callable[[], bool]) -> bool:
        """Until it is possible, tried whenever something changes; whether that took time.

        Raises ServerBusy. Cancelling is safe.
        """
        if possible():
            return False
        if not errand.admitted:
            self.check_room(errand, len(errand.waiters))
        errand.admitted, errand.queued, began_ns = True, True, self._clock.now_ns()
        try:
            self._show()
            while not possible():
                await self._until_changed(errand)
            return True
        finally:
            errand.queued = False
            now_ns = self._clock.now_ns()
            for each in errand.waiters:
                each.queued_ns += now_ns - max(began_ns, each.since_ns)
                each.deadline_ns = 0
            self._show()

    async def _until_changed(self, errand: Errand) -> None:
        now_ns = self._clock.now_ns()
        for each in errand.waiters:
            left_ns = int(self._limit_s * 1e9) - each.queued_ns
            each.deadline_ns = each.deadline_ns or max(1, now_ns + left_ns)
        first_ns = min((each.deadline_ns for each in errand.waiters), default=FOREVER_NS)
        changed = asyncio.get_running_loop().create_future()
        self._waiting.append(changed)
        try:
            await self._clock.sleep_until_ns(first_ns, unless=changed)
        finally:
            if changed in self._waiting:
                self._waiting.remove(changed)
        now_ns = self._clock.now_ns()
        late = [each for each in errand.waiters if 0 < each.deadline_ns <= now_ns]
        if late:
            error = self._too_long(errand)
            errand.waiters = [each for each in errand.waiters if each not in late]
            for each in late:
                each.fail(_twin(error))
            if not errand.waiters:
                raise error

    def _too_long(self, errand: Errand) -> ServerBusy:
        for_what = "memory" if errand.stage is Stage.MEMORY else "a place to work"
        busy = f" ({', '.join(sorted(errand.closing))} did not come to an end)"
        return ServerBusy(
            f"{errand.model} has waited for {for_what} for {self._limit_s:g} s, "
            f"at place {errand.position} of the queue{busy if errand.closing else ''}",
            status=503,
            model=errand.model,
            hint="ask again when less is going on; pool.queue_s is the limit, and can be raised",
        )

    def _show(self) -> None:
        """Tell those whose position has changed."""
        queued = [each for each in self.errands if each.queued and each.waiters]
        for position, errand in enumerate(queued, 1):
            if errand.position != position:
                errand.position = position
                progress = LoadProgress(errand.model, LoadPhase.QUEUED, position)
                self._herald.tell_all(errand, progress)
        for errand in self.errands:
            if not errand.queued:
                errand.position = 0
