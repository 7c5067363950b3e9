"""Pulling: who has agreed, one flight per model, attempt after attempt until everything is there.

A flight is a task of the scope. Whoever asks for a model that is on its way waits for that flight, and it is
given up when nobody waits any more: what has come stays for the next one. Another process that pulls the
same model into the same store is waited for, and then there is nothing left to do.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import msgspec

from ollama_adapter.config import PoolConfig, Sandbox
from ollama_adapter.core.names import ModelName, local_name
from ollama_adapter.core.registry import Source, source_of
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import PullProgress, PullReceipt
from ollama_adapter.puller.consent import Confirm, Report, check_consent, guarded
from ollama_adapter.puller.errand import SCRIPT
from ollama_adapter.puller.flight import Flight, Patience, Surroundings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope, is_orphan, shared
from ollama_adapter.system.store import Layout


class _Shared(msgspec.Struct, eq=False):
    """One flight and those who wait for it."""

    task: asyncio.Task[PullReceipt | AdapterError]
    reports: list[Report] = msgspec.field(default_factory=list)
    last: PullProgress | None = None

    def tell(self, progress: PullProgress) -> None:
        self.last = progress
        for each in list(self.reports):
            each(progress)


class Puller:
    """Pulls into one store. `ours`: where downloads grow, if that is on the store's disk."""

    def __init__(
        self,
        store: Path,
        config: PoolConfig,
        scope: TaskScope,
        clock: Clock,
        *,
        ours: Path | None = None,
        sandbox: Sandbox = Sandbox.ENFORCED,
        cafile: str = "",
        patience: Patience | None = None,
        chance: Callable[[], float] = random.random,
        script: Path = SCRIPT,
    ) -> None:
        """`cafile`: authorities to trust instead of this machine's, also for a registry on it.

        `chance` and `script`, which speaks with the registry, are others in tests.
        """
        self._registries = config.registries
        self._scope = scope
        self._tls_on_loopback = bool(cafile)
        self._around = Surroundings(
            Layout(store),
            ours,
            scope,
            clock,
            sandbox,
            cafile,
            patience or Patience(),
            chance,
            script,
        )
        self._flights: dict[tuple[str, tuple[str, ...]], _Shared] = {}

    def __repr__(self) -> str:
        return f"<Puller {len(self._flights)} under way>"

    async def pull(
        self,
        model: str,
        on_progress: Report | None = None,
        *,
        confirm: Confirm | None = None,
        also_from: Iterable[str] = (),
    ) -> PullReceipt:
        """Until the model is in the store, complete and checked. Calling it is the consent of the caller.

        `also_from` are hosts to allow besides `pool.registries`. Raises PullRefused where a host is not
        allowed or `confirm` says no, PullFailed, RemoteModelRefused, InvalidModelFile, NotSandboxed.
        Cancelling is safe: what has come stays, and the next pull goes on with it.
        """
        registries = (*self._registries, *also_from)
        name = local_name(model)
        source = source_of(name, tls_on_loopback=self._tls_on_loopback)
        check_consent(source, registries)
        flight = self._flight(name, source, registries, confirm)
        report = guarded(on_progress)
        flight.reports.append(report)
        if flight.last is not None:
            report(flight.last)
        try:
            result = await shared(flight.task)
        finally:
            flight.reports.remove(report)
            if not flight.reports and not flight.task.done() and not is_orphan(flight.task):
                self._forget(flight)
                flight.task.cancel()
        if isinstance(result, AdapterError):
            raise result
        return result

    def _flight(
        self,
        name: ModelName,
        source: Source,
        registries: tuple[str, ...],
        confirm: Confirm | None,
    ) -> _Shared:
        key = (name.key, registries)
        if key not in self._flights:
            flight = Flight(self._around, name, source, registries, confirm)
            made = _Shared(self._scope.spawn(_caught(flight), "pull"))
            flight.tell = made.tell
            made.task.add_done_callback(lambda _: self._forget(made))
            self._flights[key] = made
        return self._flights[key]

    def _forget(self, flight: _Shared) -> None:
        for key, each in list(self._flights.items()):
            if each is flight:
                del self._flights[key]


async def _caught(flight: Flight) -> PullReceipt | AdapterError:
    """Its error is for whoever waits, not for the scope."""
    try:
        return await flight.run()
    except AdapterError as error:
        return error
