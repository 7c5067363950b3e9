"""Which pretended models are in memory: loading, places to run in, keep_alive, as Ollama does it.

Loads happen one at a time; a client that leaves meanwhile leaves nothing loaded. Places are given in
the order of asking. A model goes when its time is up, which is found out when somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from ollama_adapter.embedded.values import ApiError
from ollama_adapter.system.clock import Clock
from ollama_adapter.testing.model import PretendModel

KEEP_ALIVE_S: Final = 300.0
_RELOADING: Final = (
    "num_ctx",
    "num_batch",
    "num_thread",
    "num_gpu",
    "main_gpu",
    "use_mmap",
    "shift",
)
LOAD_FAILED: Final = (
    "llama-server process has terminated: exit status 1: error loading model: "
    "tensor 'blk.1.attn_q.weight' not found"
)


@dataclass(slots=True)
class Resident:
    """A model in memory; `spec` are the options it was loaded with."""

    model: PretendModel
    spec: Mapping[str, Any] = field(repr=False)
    keep_s: float = KEEP_ALIVE_S
    expires_ns: float = 0
    users: int = 0


@dataclass(slots=True)
class Load:
    """How a load shall go."""

    takes_ns: int
    anew: bool = False
    fails: bool = False


class Memory:
    """The models in memory, by their full names."""

    def __init__(self, clock: Clock, places: int) -> None:
        self._clock = clock
        self._places = places
        self._residents: dict[str, Resident] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._loading = asyncio.Lock()

    def residents(self) -> dict[str, Resident]:
        """Those whose time is not up."""
        now = self._clock.now_ns()
        gone = [
            name
            for name, each in self._residents.items()
            if not each.users and each.expires_ns <= now
        ]
        for name in gone:
            del self._residents[name]
        return self._residents

    def unload(self, name: str) -> None:
        """Let a model go: now, or when its last answer has ended."""
        if (resident := self._residents.get(name)) is not None:
            resident.keep_s = 0.0
            resident.expires_ns = 0

    def clear(self) -> None:
        """The process has died."""
        self._residents.clear()

    async def ensure(
        self, name: str, model: PretendModel, spec: Mapping[str, Any], load: Load
    ) -> Resident:
        """The model in memory, loaded if need be."""
        chosen = {key: spec[key] for key in _RELOADING if key in spec}
        async with self._loading:
            resident = self.residents().get(name)
            if resident is not None and resident.spec == chosen and not load.anew:
                return resident
            if not (resident is not None and resident.users):
                self._residents.pop(name, None)
            await self._clock.sleep_until_ns(self._clock.now_ns() + load.takes_ns)
            if load.fails:
                raise ApiError(500, LOAD_FAILED)
            resident = Resident(model, chosen)
            self._touch(resident)
            self._residents[name] = resident
            return resident

    @contextlib.asynccontextmanager
    async def use(self, resident: Resident, keep_s: float | None) -> AsyncIterator[None]:
        """Hold a model in memory; its time begins when the last user ends."""
        resident.users += 1
        if keep_s is not None:
            resident.keep_s = keep_s
        try:
            yield
        finally:
            resident.users -= 1
            self._touch(resident)

    def place(self, name: str) -> asyncio.Semaphore:
        """Where a model's answers wait for each other."""
        return self._slots.setdefault(name, asyncio.Semaphore(self._places))

    def _touch(self, resident: Resident) -> None:
        kept = resident.keep_s
        resident.expires_ns = (
            math.inf if kept == math.inf else self._clock.now_ns() + int(kept * 1e9)
        )
