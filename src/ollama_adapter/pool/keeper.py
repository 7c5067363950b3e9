"""The models in memory: who is resident, and one flight per model however many ask.

A load is a request of its own and a task of the scope, so that aborting a generation never aborts a
load that others wait for; one that nobody waits for any more is given up. What is known of a model
(that it is here, that it runs here) is asked of the daemon once, before the first prompt for it is sent.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.durations import keep_alive_ns
from ollama_adapter.core.failures import remote_refused
from ollama_adapter.core.names import local_name, parse_name
from ollama_adapter.core.requests import Request, load_request
from ollama_adapter.errors import (
    AdapterError,
    InvalidRequest,
    ModelLoadFailed,
    ProtocolError,
    ReadTimeout,
    ResponseError,
)
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.pool.lease import Lease
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope, is_orphan, shared

MARGIN_NS: Final = 500_000_000  # before its keep-alive ends a model no longer counts as resident


@dataclass(eq=False, slots=True)
class _Flight:
    task: asyncio.Task[bool | AdapterError]
    waiters: int = 0


@dataclass(slots=True)
class Residency:
    """What we hold of a model in memory: the options it was loaded with, and until when it stays."""

    reloading: dict[str, Any]
    until_ns: int


class ModelPool:
    """Loads models and remembers which are warm. One daemon's; `forget` when that one has ended."""

    def __init__(
        self, config: PoolConfig, client: OllamaClient, scope: TaskScope, clock: Clock
    ) -> None:
        self._config = config
        self._client = client
        self._scope = scope
        self._clock = clock
        self._resident: dict[str, Residency] = {}
        self._known: dict[str, dict[str, Any]] = {}
        self._flights: dict[tuple[str, ...], _Flight] = {}
        self._busy: Counter[str] = Counter()
        self._leases: set[Lease] = set()
        self._digests: dict[str, str] = {}  # outlive the daemon: by them memory is searched

    def __repr__(self) -> str:
        return f"<ModelPool {len(self._resident)} resident, {len(self._flights)} loading>"

    def is_warm(self, model: str, reloading: Mapping[str, Any]) -> bool:
        """In memory, as far as we know, with what these options ask for."""
        held = self._resident.get(local_name(model).key)
        if held is None or held.until_ns - MARGIN_NS < self._clock.now_ns():
            return False
        return dict(reloading) == held.reloading

    def is_loading(self, model: str) -> bool:
        """Somebody waits for it, with whatever options."""
        return any(flight[0] == local_name(model).key for flight in self._flights)

    def at_work(self) -> Counter[str]:
        """How many hold or await each model, by the keys of the models; loads count as well."""
        return self._busy + Counter(flight[0] for flight in self._flights)

    def known(self, model: str) -> Mapping[str, Any]:
        """What /api/show has said of the model; nothing where it was not asked."""
        return self._known.get(local_name(model).key, {})

    def used(self, model: str, reloading: Mapping[str, Any], keep_alive: str | float) -> None:
        """A request for the model has been answered: it stays for `keep_alive` from now on."""
        until = self._clock.now_ns() + keep_alive_ns(keep_alive)
        self._resident[local_name(model).key] = Residency(dict(reloading), until)

    def forget(self) -> None:
        """The daemon is another one, or has ended: nothing is resident."""
        for lease in self._leases:
            lease.lapsed = True
        self._resident.clear()
        self._known.clear()

    async def describe(self, model: str) -> dict[str, Any]:
        """What /api/show says. Raises ModelNotFound, RemoteModelRefused. Cancelling is safe."""
        key = local_name(model).key
        if key not in self._known:
            shown = await self._client.show(model)
            if shown.get("remote_host") or shown.get("remote_model"):
                raise remote_refused(model)
            await self._see_digest(key)
            self._known[key] = shown
        return self._known[key]

    def digest(self, model: str) -> str:
        """Of a model, as it was last seen; "" for one that was not."""
        return self._digests.get(local_name(model).key, "")

    async def ensure_loaded(
        self,
        model: str,
        *,
        keep_alive: str | float | None = None,
        reloading: Mapping[str, Any] | None = None,
    ) -> bool:
        """Until the model is in memory; True when it was there already.

        `reloading` are the options that decide how it is loaded, such as num_ctx. Raises ModelNotFound,
        RemoteModelRefused, ModelLoadFailed. Cancelling leaves the load to others who wait for it, if any.
        """
        options = dict(reloading or {})
        if self.is_warm(model, options):
            return True
        key = (local_name(model).key, *(f"{each}={options[each]}" for each in sorted(options)))
        if key not in self._flights:
            alive = self._config.keep_alive if keep_alive is None else keep_alive
            flight = _Flight(self._scope.spawn(self._load(model, alive, options), "model load"))
            self._flights[key] = flight
            flight.task.add_done_callback(lambda _: self._landed(key, flight))
        result = await self._wait(key, self._flights[key])
        if isinstance(result, AdapterError):
            raise result
        return result

    async def acquire(
        self,
        request: Request,
        *,
        substitute: bool | None = None,
        on_progress: Callable[[LoadProgress], None] | None = None,
    ) -> Lease:
        """The request's model in memory, and busy until the lease is released.

        `substitute`: whether another model may serve (None: as pool.substitute says). `on_progress` is
        told how far it is, from the queue to ready. Raises ServerBusy, BudgetExceeded,
        and what ensure_loaded does. Cancelling is safe: nothing is held then.
        """
        key = local_name(request.model).key
        self._busy[key] += 1
        try:
            warm = await self.ensure_loaded(
                request.model, keep_alive=request.keep_alive, reloading=request.reloading
            )
        except BaseException:
            self._busy[key] -= 1
            raise
        self._tell(on_progress, LoadProgress(request.model, LoadPhase.READY))
        lease = Lease(request, self._give_back, warm=warm)
        self._leases.add(lease)
        return lease

    def _give_back(self, lease: Lease) -> None:
        request = lease.request
        key = local_name(request.model).key
        self._leases.discard(lease)
        self._busy[key] -= 1
        if key in self._resident:
            self.used(request.model, request.reloading, request.keep_alive)

    @staticmethod
    def _tell(callback: Callable[[LoadProgress], None] | None, progress: LoadProgress) -> None:
        if callback is not None:
            callback(progress)

    async def _wait(self, key: tuple[str, ...], flight: _Flight) -> bool | AdapterError:
        """The result of a load, which is given up when nobody waits for it any more."""
        flight.waiters += 1
        try:
            return await shared(flight.task)
        finally:
            flight.waiters -= 1
            unwanted = not flight.waiters and not flight.task.done()
            if unwanted and not is_orphan(flight.task):
                self._landed(key, flight)  # who comes now starts anew
                flight.task.cancel()

    def _landed(self, key: tuple[str, ...], flight: _Flight) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    async def _load(
        self, model: str, keep_alive: str | float, options: dict[str, Any]
    ) -> bool | AdapterError:
        """Whether it was in memory already. Its error is for whoever waits, not for the scope."""
        try:
            shown = await self.describe(model)
            resident = await self._is_resident(model)
            embeds = "embedding" in shown["capabilities"]
            request = load_request(model, keep_alive, options, embedding=embeds)
            # With a keep-alive of 0 the daemon would unload it, not load it.
            if keep_alive_ns(request.keep_alive) > 0:
                await self._load_within(request)
        except AdapterError as error:
            return error
        self.used(model, options, request.keep_alive)
        return resident and not options  # with these options, it may have had to be loaded anew

    async def _load_within(self, request: Request) -> None:
        limit_s = self._config.load_s
        try:
            await self._client.load(request, limit_s)
        except ReadTimeout as error:
            raise ModelLoadFailed(
                f"{request.model} was not loaded within {limit_s:g} s",
                hint="pool.load_s is the limit, and can be raised; a smaller model loads sooner",
            ) from error

    async def _see_digest(self, key: str) -> None:
        """A model of the same name may be another one since the last daemon."""
        try:
            listed = await self._client.tags()
        except (ResponseError, ProtocolError, ReadTimeout):  # then nothing of it is kept in memory
            listed = []
        digests = {_key(str(each.get("name", ""))): each.get("digest", "") for each in listed}
        self._digests[key] = str(digests.get(key, ""))

    async def _is_resident(self, model: str) -> bool:
        """By the daemon's word: somebody else may have loaded it."""
        key = local_name(model).key
        names = [str(each.get("name", "")) for each in await self._client.ps()]
        return any(_key(name) == key for name in names)


def _key(name: str) -> str:
    try:
        return parse_name(name).key
    except InvalidRequest:
        return ""
