"""A pool on a pretended daemon, over TCP, with a budget of its own: for the tests of the pool."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.requests import Request, generate_request
from ollama_adapter.core.tiers import Limits
from ollama_adapter.events import Change, Footprint, LoadProgress, ResidencyChange
from ollama_adapter.pool import Lease, ModelPool, Surroundings
from ollama_adapter.system.clock import Clock, SystemClock
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing import Machine, Move, PretendModel, PretendOllama
from tests.serving import WATCHDOG_S

MIB: Final = 1 << 20
EMPTY: Final = "nothing but a load"


def model(name: str, mib: int = 100, **more: Any) -> PretendModel:
    return PretendModel(name, size_bytes=mib * MIB, **more)


def bounds(
    mib: int = 1000, vram: int = 0, *, largest: int = 0, parallel: int = 4, resident: int = 8
) -> Limits:
    room = Footprint(mib * MIB, vram * MIB)
    return Limits(room, (largest or mib + vram) * MIB, parallel, resident, (1.0, None))


@dataclass(eq=False)
class Rig:
    """A pool, its daemon, and what it has told."""

    daemon: PretendOllama
    pool: ModelPool
    scope: TaskScope
    clock: Clock
    keep_alive: str | float = "5m"
    changes: list[ResidencyChange] = field(default_factory=list)
    progress: list[LoadProgress] = field(default_factory=list)

    def request(self, name: str, **keywords: Any) -> Request:
        keep_alive = keywords.pop("keep_alive", self.keep_alive)
        return generate_request(name, "a prompt", keywords, keep_alive)

    async def acquire(self, name: str, **keywords: Any) -> Lease:
        return await self.pool.acquire(self.request(name, **keywords))

    async def generate(self, name: str, **keywords: Any) -> Lease:
        """Acquire, let the daemon answer, and release; the lease tells how it went."""
        with await self.acquire(name, **keywords) as lease:
            await self.send(lease.request)
        return lease

    async def send(self, request: Request) -> None:
        client = OllamaClient(dial_port(self.daemon.port), connect_s=5.0)
        exchange = await client.generate(request, lambda *_: None)
        try:
            assert await exchange.ended
        finally:
            exchange.close()

    @property
    def loads(self) -> list[str]:
        return [name for move, name in self.daemon.moves if move is Move.LOADED]

    def told(self, *kinds: Change) -> list[tuple[str, Change]]:
        return [
            (each.model, each.change) for each in self.changes if not kinds or each.change in kinds
        ]


@asynccontextmanager
async def rig(
    *models: PretendModel | str,
    limits: Limits | None = None,
    shared: bool = False,
    machine: Machine | None = None,
    clock: Clock | None = None,
    surroundings: Surroundings | None = None,
    daemon: dict[str, Any] | None = None,
    watchdog_s: float | None = WATCHDOG_S,
    **config: Any,
) -> AsyncIterator[Rig]:
    """A pool with `limits`, on a daemon with these models; a long run has no watchdog."""
    scope, time = TaskScope(), clock or SystemClock()
    around = surroundings or Surroundings()
    held = limits or bounds()
    around.limits = lambda: held
    around.shared = lambda: shared
    settings = PoolConfig(**{"watch_s": 0.0} | config)
    async with (
        asyncio.timeout(watchdog_s),
        PretendOllama(*models, machine=machine, clock=time, **daemon or {}) as pretended,
    ):
        client = OllamaClient(dial_port(pretended.port), connect_s=5.0)
        pool = ModelPool(settings, client, scope, time, around)
        made = Rig(pretended, pool, scope, time, settings.keep_alive)
        pool.on_change(made.changes.append)
        pool.on_progress(made.progress.append)
        try:
            yield made
        finally:
            await scope.aclose()


def names(leases: Sequence[Lease]) -> list[str]:
    return [each.model for each in leases]
