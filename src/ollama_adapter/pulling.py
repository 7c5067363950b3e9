"""Who downloads a model: our own puller, into the store that the daemon reads; else the daemon itself.

A daemon that we spawned reads our store, and one that was adopted may: it is asked whether it sees a blob
that we have just put there. Where it does not, or where we may not write, our puller would fetch for nobody,
so the daemon pulls with its own /api/pull, and that is said: its hosts and bytes are not ours to count.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Final, Protocol

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import Config, Pulling
from ollama_adapter.core.names import ModelName, local_name
from ollama_adapter.core.registry import Meter, source_of
from ollama_adapter.core.relayed import Relayed
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.errors import DaemonError, PullRefused, TransportError
from ollama_adapter.events import (
    LoadPhase,
    LoadProgress,
    PullOffer,
    PullProgress,
    PullReceipt,
    PullStage,
)
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.puller.consent import Confirm, Report, check_consent, guarded, no_consent
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.store import Layout

THE_DAEMON: Final = "the daemon"


class _Puller(Protocol):
    async def pull(
        self,
        model: str,
        on_progress: Report | None = None,
        *,
        confirm: Confirm | None = None,
        also_from: Iterable[str] = (),
    ) -> PullReceipt: ...


class ModelSource:
    """Where models come from, for one adapter. Cancelling any of it is safe."""

    def __init__(
        self,
        config: Config,
        daemon: OllamaDaemon,
        client: OllamaClient,
        scope: TaskScope,
        clock: Clock,
    ) -> None:
        self._config = config
        self._daemon = daemon
        self._client = client
        self._scope = scope
        self._clock = clock
        self._layout = Layout(settings.models_dir(config.daemon))

    def __repr__(self) -> str:
        return f"<ModelSource {self._layout.root}>"

    @cached_property
    def _puller(self) -> _Puller:
        from ollama_adapter.puller.pull import Puller  # for those alone who download

        return Puller(
            self._layout.root,
            self._config.pool,
            self._scope,
            self._clock,
            ours=settings.pulling_dir(),
            sandbox=self._config.daemon.sandbox,
        )

    async def pull_missing(self, model: str, on_progress: Callable[[LoadProgress], None]) -> None:
        """For the pool: raises PullRefused unless the settings say that downloads need no asking."""
        if self._config.pool.pulling is not Pulling.ALWAYS:
            raise no_consent(str(local_name(model)))
        await self.pull(model, on_progress)

    async def pull(
        self,
        model: str,
        on_progress: Report | None = None,
        *,
        confirm: Confirm | None = None,
        also_from: Iterable[str] = (),
    ) -> PullReceipt:
        """See Puller.pull. Where no daemon can be had our puller fetches all the same."""
        also_from = tuple(also_from)
        name = local_name(model)
        check_consent(source_of(name), (*self._config.pool.registries, *also_from))
        try:
            await self._daemon.ensure_running()
            relayed = self._daemon.origin == ADOPTED and not await self._is_shared()
        except (DaemonError, TransportError):
            relayed = False
        if relayed:
            return await self._relay(name, guarded(on_progress), confirm)
        return await self._puller.pull(model, on_progress, confirm=confirm, also_from=also_from)

    async def _is_shared(self) -> bool:
        """The daemon reads the store that we would write to."""
        loop = asyncio.get_running_loop()
        try:
            digest = await loop.run_in_executor(None, self._layout.put, os.urandom(32))
        except OSError:
            return False
        try:
            return await self._client.has_blob(digest)
        finally:
            self._layout.blob(digest).unlink(missing_ok=True)

    async def _relay(self, name: ModelName, report: Report, confirm: Confirm | None) -> PullReceipt:
        if confirm is not None:
            host = str(source_of(name).address)
            offer = PullOffer(str(name), host, 0, 0, "the daemon's own store", THE_DAEMON)
            if not await confirm(offer):
                raise PullRefused(
                    "nothing was downloaded: you said no", hint="ask again at any time"
                )
        meter = Meter(self._clock.now_ns(), 0, 0)

        def on_progress(told: Relayed) -> None:
            meter.total = told.total
            meter.advance(self._clock.now_ns(), told.done)
            report(self._progress(name, meter, PullStage.FETCHING, told.status[:80]))

        report(self._progress(name, meter, PullStage.ASKING, ""))
        await self._client.pull(str(name), on_progress)
        report(self._progress(name, meter, PullStage.DONE, ""))
        elapsed_s = meter.elapsed_s(self._clock.now_ns())
        return PullReceipt(str(name), THE_DAEMON, meter.total, meter.done, elapsed_s)

    def _progress(self, name: ModelName, meter: Meter, stage: PullStage, note: str) -> PullProgress:
        elapsed_s, remaining_s = meter.elapsed_s(self._clock.now_ns()), meter.remaining_s
        return PullProgress(
            model=str(name),
            phase=LoadPhase.PULLING,
            done_bytes=meter.done,
            total_bytes=meter.total,
            elapsed_s=elapsed_s,
            expected_s=None if remaining_s is None else elapsed_s + remaining_s,
            stage=stage,
            bytes_per_s=meter.bytes_per_s,
            remaining_s=remaining_s,
            host=THE_DAEMON,
            note=note,
        )
