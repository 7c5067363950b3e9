"""Looks now and then at what is in memory: somebody else may unload a model, or a GPU lose it."""

from __future__ import annotations

import asyncio
import contextlib

from ollama_adapter.errors import AdapterError
from ollama_adapter.pool.admission import Admission
from ollama_adapter.pool.parts import Parts
from ollama_adapter.system.scope import is_orphan


class Watch:
    """Runs while something is believed to be in memory, and no longer."""

    def __init__(self, parts: Parts, admission: Admission) -> None:
        self._admission = admission
        self._ledger = parts.ledger
        self._scope = parts.scope
        self._clock = parts.clock
        self._every_ns = int(parts.config.watch_s * 1e9)
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Watch every {self._every_ns / 1e9:g} s>"

    def ensure_started(self) -> None:
        if not self._every_ns:
            return
        task = self._task
        if task is None or task.done() or is_orphan(task):
            self._task = self._scope.spawn(self._run(), "residency watch")

    async def _run(self) -> None:
        while self._ledger.entries:
            await self._clock.sleep_until_ns(self._clock.now_ns() + self._every_ns)
            with contextlib.suppress(
                AdapterError
            ):  # whether it is alive is its supervisor's business
                await self._admission.look()
                await self._admission.relieve()
