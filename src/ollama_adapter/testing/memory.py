"""Which pretended models are in memory: loading, places to run in, keep_alive, as Ollama does it.

Loads happen one at a time; a client that leaves meanwhile leaves nothing loaded. Where memory is short,
or the models are as many as may be, others go: idle ones first, and of these the one with the shortest
keep-alive; else the load waits. Places are given in the order of asking. A model goes when its time is up,
which is found out when somebody looks.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections import deque
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
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


TOO_LARGE: Final = "model requires more system memory ({needed}) than is available ({there})"
HISTORY: Final = 10_000


@dataclass(slots=True)
class Resident:
    """A model in memory; `spec` are the options it was loaded with, defaults included."""

    model: PretendModel
    spec: Mapping[str, Any] = field(repr=False)
    ram: int = 0
    vram: int = 0
    keep_s: float = KEEP_ALIVE_S
    expires_ns: float = 0
    users: int = 0


@dataclass(slots=True)
class Load:
    """How a load shall go."""

    takes_ns: int
    anew: bool = False
    fails: bool = False


@dataclass(frozen=True, slots=True)
class Machine:
    """What the daemon runs on, in bytes; 0: as much RAM as is wanted, and no GPU.

    `max_loaded` is its OLLAMA_MAX_LOADED_MODELS; 0: as many as there is memory for.
    """

    ram_bytes: int = 0
    vram_bytes: int = 0
    max_loaded: int = 0


class Move(StrEnum):
    """What happened to a model's place in memory."""

    LOADED = "loaded"
    UNLOADED = "unloaded"
    """On request, or since its time was up."""
    EVICTED = "evicted"
    """By the daemon, which needed its place."""


class Memory:
    """The models in memory, by their full names."""

    def __init__(self, clock: Clock, places: int, machine: Machine) -> None:
        self._clock = clock
        self._places = places
        self._machine = machine
        self._residents: dict[str, Resident] = {}
        self._slots: dict[str, asyncio.Semaphore] = {}
        self._loading = asyncio.Lock()
        self._waiting: list[asyncio.Future[None]] = []
        self.moves: deque[tuple[Move, str]] = deque(maxlen=HISTORY)
        """What happened, in order: the last HISTORY of it."""
        self.most = (0, 0)
        """The most bytes of RAM and of VRAM that were ever taken, by what is loaded and what loads."""

    def residents(self) -> dict[str, Resident]:
        """Those whose time is not up."""
        now = self._clock.now_ns()
        gone = [
            name
            for name, each in self._residents.items()
            if not each.users and each.expires_ns <= now
        ]
        for name in gone:
            self._remove(name, Move.UNLOADED)
        return self._residents

    def taken(self) -> tuple[int, int]:
        """The bytes of RAM and of VRAM that are in use."""
        residents = self.residents().values()
        return sum(each.ram for each in residents), sum(each.vram for each in residents)

    def unload(self, name: str) -> None:
        """Let a model go: now, or when its last answer has ended."""
        if (resident := self._residents.get(name)) is not None:
            resident.keep_s = 0.0
            resident.expires_ns = 0

    def change(self, name: str, *, grows_bytes: int = 0, to_cpu: bool = False) -> None:
        """A model takes more than before, or is not on the GPU any more."""
        resident = self.residents()[name]
        if to_cpu:
            resident.ram, resident.vram = resident.ram + resident.vram, 0
        if resident.vram:
            resident.vram += grows_bytes
        else:
            resident.ram += grows_bytes

    def clear(self) -> None:
        """The process has died."""
        self._residents.clear()

    async def ensure(
        self, name: str, model: PretendModel, spec: Mapping[str, Any], load: Load
    ) -> Resident:
        """The model in memory, loaded if need be."""
        chosen: dict[str, Any] = {"shift": True}
        chosen |= {key: spec[key] for key in _RELOADING if key in spec}
        chosen["num_ctx"] = model.context(chosen.get("num_ctx"))
        async with self._loading:
            resident = self.residents().get(name)
            if resident is not None and resident.spec == chosen and not load.anew:
                return resident
            await self._end(name)
            loading = Resident(model, chosen)
            loading.ram, loading.vram = await self._make_room(model.memory_bytes(chosen["num_ctx"]))
            self._measure(loading)
            await self._clock.sleep_until_ns(self._clock.now_ns() + load.takes_ns)
            if load.fails:
                raise ApiError(500, LOAD_FAILED)
            self._touch(loading)
            self._residents[name] = loading
            self.moves.append((Move.LOADED, name))
            return loading

    async def _end(self, name: str) -> None:
        """Of the model as it is in memory now, when its last answer has ended."""
        while (resident := self.residents().get(name)) is not None:
            if not resident.users:
                return self._remove(name, Move.UNLOADED)
            await self._change()

    async def _make_room(self, needed: int) -> tuple[int, int]:
        """Where so many bytes go, once enough others have gone: idle ones first, the short-lived first."""
        limit = self._machine.max_loaded
        while True:
            others = self.residents()
            place = self._place(needed, alone=not others)
            if place is not None and (not limit or len(others) < limit):
                return place
            if not others:
                there = self._machine.ram_bytes + self._machine.vram_bytes
                raise ApiError(500, TOO_LARGE.format(needed=_gib(needed), there=_gib(there)))
            name, victim = min(others.items(), key=lambda each: (each[1].users > 0, each[1].keep_s))
            if victim.users:
                await self._change()
            else:
                self._remove(name, Move.EVICTED)

    def _place(self, needed: int, *, alone: bool) -> tuple[int, int] | None:
        """In RAM and VRAM; only what is alone is split between them."""
        ram, vram = self.taken()
        free = self._machine.vram_bytes - vram
        if needed <= free:
            return 0, needed
        if self._machine.vram_bytes and not alone:
            return None
        if self._machine.ram_bytes and ram + needed - free > self._machine.ram_bytes:
            return None
        return needed - free, free

    def _remove(self, name: str, move: Move) -> None:
        del self._residents[name]
        self.moves.append((move, name))

    def _measure(self, loading: Resident) -> None:
        ram, vram = self.taken()
        self.most = max(self.most[0], ram + loading.ram), max(self.most[1], vram + loading.vram)

    async def _change(self) -> None:
        """Until somebody has ended."""
        changed = asyncio.get_running_loop().create_future()
        self._waiting.append(changed)
        await changed

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
            waiting, self._waiting = self._waiting, []
            for each in waiting:
                if not each.done():
                    each.set_result(None)

    def place(self, name: str) -> asyncio.Semaphore:
        """Where a model's answers wait for each other."""
        return self._slots.setdefault(name, asyncio.Semaphore(self._places))

    def _touch(self, resident: Resident) -> None:
        kept = resident.keep_s
        resident.expires_ns = (
            math.inf if kept == math.inf else self._clock.now_ns() + int(kept * 1e9)
        )


def _gib(number: int) -> str:
    return f"{number / (1 << 30):.1f} GiB"
