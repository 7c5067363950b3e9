"""Which models are in memory: loads, queues, evicts, keeps alive.

One loaded model has one runner and `parallel` slots; requests beyond that wait in order. At the limit of
loaded models a new one takes the place of an idle one, or waits for one to become idle. Loads happen one
at a time, are shared by all who wait for them, and are given up when the last of these has gone.
State is written here only.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from ollama_adapter.embedded.child import Runner, Spec
from ollama_adapter.embedded.orders import Plain, Start
from ollama_adapter.embedded.store import Model
from ollama_adapter.embedded.values import FOREVER, ApiError
from ollama_adapter.embedded.wire import RunnerGone
from ollama_adapter.system.clock import EPOCH_OFFSET_NS, monotonic_ns

BUSY: Final = "server busy, please try again.  maximum pending requests exceeded"
LOAD_TIMED_OUT: Final = "timed out waiting for llama-server to start - "
_FAR_S: Final = 1e10  # "for ever", as a date


class Loaded(msgspec.Struct, eq=False):
    """A model in memory."""

    model: Model
    spec: Spec
    runner: Runner
    slots: asyncio.Semaphore
    keep_s: float
    expires: float
    users: int = 0
    timer: asyncio.TimerHandle | None = None
    load: _Load | None = None
    dropped: bool = False
    closing: bool = False  # somebody waits to load it anew

    @property
    def idle(self) -> bool:
        return not self.users and not (self.load and self.load.waiters)


class _Load(msgspec.Struct, eq=False):
    model: Model
    spec: Spec
    waiters: int = 0
    task: asyncio.Task[None] | None = None
    error: ApiError | None = None


class Limits(msgspec.Struct):
    """How much may be loaded and waited for."""

    max_loaded: int = 3
    max_queue: int = 512
    keep_s: float = 300.0
    load_s: float = 300.0


class Scheduler(msgspec.Struct, eq=False):
    """Owner of all runners. Its tasks are children of `group`."""

    group: asyncio.TaskGroup
    limits: Limits
    start: Start = Plain.start
    _loaded: dict[str, Loaded] = msgspec.field(default_factory=dict)
    _loads: dict[str, _Load] = msgspec.field(default_factory=dict)
    _turn: asyncio.Lock = msgspec.field(default_factory=asyncio.Lock)
    _changed: asyncio.Event = msgspec.field(default_factory=asyncio.Event)
    _runners: set[Runner] = msgspec.field(default_factory=set)
    _waiting: int = 0

    def __repr__(self) -> str:
        return f"<Scheduler {len(self._loaded)} loaded, {len(self._loads)} loading>"

    def residents(self) -> list[Loaded]:
        """What is in memory, the longest-lived first."""
        return sorted(self._loaded.values(), key=lambda each: -each.expires)

    @contextlib.asynccontextmanager
    async def lease(
        self, model: Model, spec: Spec, keep_s: float | None, *, slot: bool = True
    ) -> AsyncIterator[Loaded]:
        """The loaded model, with a slot of its own while the context lasts. Cancelling is safe."""
        loaded = await self._enter(model, spec, slot=slot)
        if keep_s is not None:
            loaded.keep_s = keep_s
        loaded.expires = _expiry(loaded.keep_s)
        try:
            yield loaded
        except RunnerGone:
            self._drop(loaded)
            raise
        finally:
            if slot:
                loaded.slots.release()
            self._release(loaded)

    async def _enter(self, model: Model, spec: Spec, *, slot: bool) -> Loaded:
        """A user's place, and a slot if one is wanted; again where the runner dies in the meantime."""
        while True:
            loaded = await self._acquire(model, spec)
            if not slot:
                return loaded
            try:
                await loaded.slots.acquire()
            except BaseException:
                self._release(loaded)
                raise
            if not loaded.dropped:
                return loaded
            loaded.slots.release()
            self._release(loaded)

    def unload(self, model: Model) -> None:
        """Let go of a model as soon as nobody uses it."""
        loaded = self._loaded.get(model.name.key)
        if loaded is not None:
            loaded.keep_s = 0.0
            if loaded.idle:
                self._drop(loaded)

    async def aclose(self) -> None:
        """End every runner and wait until they are gone."""
        loading = [load.task for load in self._loads.values() if load.task is not None]
        for task in loading:
            task.cancel()
        for runner in self._runners:
            runner.kill()
        await asyncio.gather(*loading, return_exceptions=True)
        await asyncio.gather(*(runner.stop() for runner in list(self._runners)))

    async def _acquire(self, model: Model, spec: Spec) -> Loaded:
        key = model.name.key
        while True:
            loaded = self._loaded.get(key)
            if loaded is not None and self._serves(loaded, model, spec):
                loaded.users += 1
                if loaded.timer is not None:
                    loaded.timer.cancel()
                    loaded.timer = None
                return loaded
            if self._waiting >= self.limits.max_queue:
                raise ApiError(503, BUSY)
            await self._join(self._loads.get(key) or self._begin(_Load(model, spec)))

    @staticmethod
    def _serves(loaded: Loaded, model: Model, spec: Spec) -> bool:
        same = loaded.spec == spec and loaded.model.digest == model.digest
        return same and loaded.runner.alive and not loaded.closing

    def _begin(self, load: _Load) -> _Load:
        self._loads[load.model.name.key] = load
        load.task = self.group.create_task(self._carry_out(load))
        return load

    def _forget(self, load: _Load) -> None:
        if self._loads.get(load.model.name.key) is load:
            del self._loads[load.model.name.key]

    async def _join(self, load: _Load) -> None:
        assert load.task is not None
        load.waiters += 1
        self._waiting += 1
        try:
            await asyncio.shield(load.task)
        finally:
            load.waiters -= 1
            self._waiting -= 1
            if not load.waiters and not load.task.done():
                load.task.cancel()
                self._forget(load)  # who comes now starts anew
        if load.error is not None:
            raise load.error

    async def _carry_out(self, load: _Load) -> None:
        key = load.model.name.key
        try:
            async with self._turn:
                await self._make_room(key)
                async with asyncio.timeout(self.limits.load_s):
                    runner = await Runner.start(load.spec, self.group, self.start)
                self._runners.add(runner)
        except TimeoutError:
            load.error = ApiError(500, LOAD_TIMED_OUT)
            return
        except ApiError as error:
            load.error = error
            return
        finally:
            self._forget(load)
            if (still := self._loaded.get(key)) is not None:
                still.closing = False
        loaded = Loaded(
            model=load.model,
            spec=load.spec,
            runner=runner,
            slots=asyncio.Semaphore(load.spec.parallel),
            keep_s=self.limits.keep_s,
            expires=_expiry(self.limits.keep_s),
            load=load,
        )
        self._loaded[key] = loaded
        self.group.create_task(self._watch(loaded))

    async def _make_room(self, key: str) -> None:
        """End the runner that `key` has now, and idle ones until there is a place; may wait for users."""
        while True:
            mine = self._loaded.get(key)
            if mine is not None and (mine.idle or not mine.runner.alive):
                self._drop(mine)
                await mine.runner.stop()
            elif mine is None and len(self._loaded) < self.limits.max_loaded:
                return
            else:
                idle = [each for each in self._loaded.values() if each.idle] if mine is None else []
                if idle:
                    victim = min(idle, key=lambda each: each.expires)
                    self._drop(victim)
                    await victim.runner.stop()
                else:
                    if mine is not None:
                        mine.closing = True
                    self._changed.clear()
                    await self._changed.wait()

    def _release(self, loaded: Loaded) -> None:
        loaded.users -= 1
        loaded.expires = _expiry(loaded.keep_s)
        if not loaded.users and not loaded.dropped:
            if loaded.keep_s <= 0:
                self._drop(loaded)
            elif loaded.keep_s != FOREVER:
                loop = asyncio.get_running_loop()
                loaded.timer = loop.call_later(loaded.keep_s, self._drop, loaded)
        self._changed.set()

    def _drop(self, loaded: Loaded) -> None:
        """Out of the list at once; its process is killed, and reaped by its watcher."""
        if self._loaded.get(loaded.model.name.key) is loaded:
            del self._loaded[loaded.model.name.key]
        if loaded.timer is not None:
            loaded.timer.cancel()
        loaded.dropped = True
        loaded.runner.kill()
        self._changed.set()

    async def _watch(self, loaded: Loaded) -> None:
        await asyncio.shield(loaded.runner.ended)
        self._runners.discard(loaded.runner)
        self._drop(loaded)


def _expiry(keep_s: float) -> float:
    return (monotonic_ns() + EPOCH_OFFSET_NS) / 1e9 + min(keep_s, _FAR_S)
