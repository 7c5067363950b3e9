"""The pool on a real daemon with several models: their real memory stays within the budget.

What the runners take is measured while models come and go, by a thread that looks as often as it can. How
long a first token takes is reported, not asserted.
"""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import quantiles
from typing import Any, Final

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter, PoolConfig
from ollama_adapter.client import OllamaClient
from ollama_adapter.config import Reloading
from ollama_adapter.core.requests import generate_request
from ollama_adapter.core.tiers import Limits
from ollama_adapter.embedded.importer import import_gguf
from ollama_adapter.errors import BudgetExceeded
from ollama_adapter.events import Change, Footprint
from ollama_adapter.pool import Lease, ModelPool, Surroundings
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.scope import TaskScope
from tests.embedded import daemons, ggufs
from tests.serving import WATCHDOG_S

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(36_000)]

MIB: Final = 1 << 20
REQUESTS: Final = 2_000
WORKERS: Final = 3
BUDGET: Final = Footprint(220 * MIB)
LIMITS: Final = Limits(BUDGET, BUDGET.ram, parallel=2, resident=4, tps=(1.0, None))
WIDTHS: Final = {"a": 64, "b": 256, "c": 512, "d": 768}
CONTEXTS: Final = (256, 2048, 8192)
TOO_MUCH: Final = ("d", 32_768)
COLD, WARM = 500, 5_000


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models of different sizes; the context makes as much of a difference."""
    root = tmp_path_factory.mktemp("models")
    for name, width in WIDTHS.items():
        path = ggufs.write(root / f"{name}.gguf", width=width, context=32_768)
        import_gguf(path, name, root)
    return root


class Meter(threading.Thread):
    """Looks at the memory of a daemon's runners, again and again."""

    def __init__(self, daemon: daemons.Daemon) -> None:
        super().__init__(daemon=True)
        self._daemon = daemon
        self._over = threading.Event()
        self.most = 0
        self.together = 0
        self.looks = 0

    def run(self) -> None:
        while not self._over.wait(0.001):
            taken = [_memory(each) for each in self._daemon.runners()]
            self.most = max(self.most, sum(taken))
            self.together = max(self.together, sum(each > 0 for each in taken))
            self.looks += 1

    def stop(self) -> None:
        self._over.set()
        self.join()


def _memory(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:  # it has just ended
        return 0


@contextmanager
def metered(daemon: daemons.Daemon) -> Iterator[Meter]:
    meter = Meter(daemon)
    meter.start()
    try:
        yield meter
    finally:
        meter.stop()


@dataclass(eq=False)
class Rig:
    """A pool on the daemon, and what came of the requests to it."""

    pool: ModelPool
    client: OllamaClient
    outcomes: Counter[str]
    evicted: list[str]

    async def ask(self, model: str, num_ctx: int) -> None:
        """One answer, of a model that is loaded with this context."""
        keywords = {"num_ctx": num_ctx, "num_predict": 2}
        request = generate_request(model, "ab " * (num_ctx // 8), keywords, "5m")
        try:
            lease = await self.pool.acquire(request)
        except BudgetExceeded:
            self.outcomes["refused"] += 1
            return
        with lease:
            await self._answer(lease)

    async def _answer(self, lease: Lease) -> None:
        exchange = await self.client.generate(lease.request, lambda *_: None)
        try:
            assert await exchange.ended
        finally:
            exchange.close()
        self.outcomes["warm" if lease.warm else "cold"] += 1


@asynccontextmanager
async def pooled(daemon: daemons.Daemon) -> AsyncIterator[Rig]:
    scope, clock = TaskScope(), SystemClock()
    client = OllamaClient(dial_port(daemon.port), connect_s=WATCHDOG_S)
    config = PoolConfig(reloading=Reloading.ALLOW, cooldown_s=0.0, watch_s=0.05)
    pool = ModelPool(config, client, scope, clock, Surroundings(limits=lambda: LIMITS))
    rig = Rig(pool, client, Counter(), [])
    pool.on_change(
        lambda change: rig.evicted.append(change.model) if change.change is Change.EVICTED else None
    )
    try:
        yield rig
    finally:
        await scope.aclose()


async def test_the_real_memory_stays_within_the_budget(
    models: Path, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    chance, count = random.Random(5), scaled(REQUESTS)
    wanted = [(chance.choice([*WIDTHS]), chance.choice(CONTEXTS)) for _ in range(count)]
    wanted[::10] = [TOO_MUCH] * len(wanted[::10])
    rest = iter(wanted)
    with daemons.running(models, OLLAMA_MAX_LOADED_MODELS="8") as daemon:
        async with pooled(daemon) as rig:

            async def work() -> None:
                for model, num_ctx in rest:
                    await rig.ask(model, num_ctx)

            with metered(daemon) as meter:
                async with asyncio.TaskGroup() as group:
                    for _ in range(WORKERS):
                        group.create_task(work())
    refused = wanted.count(TOO_MUCH)
    assert rig.outcomes["refused"] == refused
    assert rig.outcomes["warm"] + rig.outcomes["cold"] == count - refused
    assert rig.evicted and meter.together > 1 and meter.looks > count
    assert meter.most <= BUDGET.ram
    what = "several models on the embedded daemon: "
    measured(
        f"{what}memory of all runners", meter.most / MIB, f"≤ {BUDGET.ram // MIB}", "MiB", count
    )
    measured(f"{what}models evicted", len(rig.evicted), "", "", count)


async def test_the_first_token_of_a_tiny_model(
    models: Path, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    asyncio.get_running_loop().set_debug(False)  # as applications run it: it is half of the time
    with daemons.running(models) as daemon:
        config = Config(
            daemon=DaemonConfig(port=daemon.port, mode=DaemonMode.ADOPT), pool=PoolConfig()
        )
        async with OllamaAdapter(config) as adapter:
            cold = await _first_tokens(adapter, scaled(COLD), warm=False, keep_alive=0)
            await adapter.pool.ensure_loaded("tinydoc")
            warm = await _first_tokens(adapter, scaled(WARM), warm=True)
    for name, values, goal in (("cold", cold, "≤ 500"), ("warm", warm, "≤ 10")):
        cuts = quantiles(values, n=100, method="inclusive")
        for label, value in (("p50", cuts[49]), ("p99", cuts[98])):
            what = f"first token of the embedded tiny model, {name}, {label}"
            measured(what, value, goal, "ms", len(values))


async def _first_tokens(
    adapter: OllamaAdapter, count: int, *, warm: bool, **more: Any
) -> list[float]:
    """Times to the first token, in milliseconds; each is of an answer that was as warm as it is called."""
    found: list[float] = []
    for _ in range(count):
        answer = await adapter.generate("tinydoc", "os.path.join", num_predict=2, **more)
        assert answer.statistics.warm is warm
        assert answer.statistics.ttft_ms is not None
        found.append(answer.statistics.ttft_ms)
    return found
