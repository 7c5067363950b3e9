"""The budget on the embedded daemon: real models in real runners, whose real memory is looked at."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter, PoolConfig
from ollama_adapter.config import Sandbox
from ollama_adapter.core.footprint import MIB
from ollama_adapter.embedded.importer import import_gguf
from ollama_adapter.errors import BudgetExceeded
from ollama_adapter.events import Change
from tests.embedded import ggufs

pytestmark = pytest.mark.anyio

WATCHDOG_S = 100.0
NAMES: Final = "abcd"
CONTEXT: Final = 2048


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Four models of two sizes, in a home of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
        for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS"):
            patch.delenv(name, raising=False)
        root = tmp_path_factory.mktemp("models")
        for seed, name in enumerate(NAMES, 1):
            path = root / f"{name}.gguf"
            ggufs.write(path, width=512 if seed % 2 else 768, context=CONTEXT, seed=seed)
            import_gguf(path, name, root)
        yield root


def config(store: Path, **pool: Any) -> Config:
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, models_dir=str(store), sandbox=Sandbox.NONE)
    return Config(daemon=daemon, pool=PoolConfig(**pool))


def runners_bytes(adapter: OllamaAdapter) -> int:
    """What the processes that run models take, as the system counts it."""
    assert adapter.daemon.pid is not None
    total = 0
    for each in psutil.Process(adapter.daemon.pid).children(recursive=True):
        try:
            if any("sha256-" in word for word in each.cmdline()):
                total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


async def ask(adapter: OllamaAdapter, name: str, drawn: random.Random) -> None:
    """An answer, or an abort in the middle of one."""
    async with adapter.generate_stream(name, "ab", num_predict=20, temperature=1.0) as stream:
        async for _ in stream:
            if drawn.random() < 0.1:
                break


@pytest.mark.timeout(0)
async def test_real_models_stay_within_the_budget(
    store: Path, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    rounds, drawn, most = scaled(1_000), random.Random(7), 0
    async with OllamaAdapter(config(store)) as adapter:
        large = (await adapter.pool.plan("b")).takes.total
    budget = large * 5 // 2
    async with OllamaAdapter(config(store, ram_bytes=budget, cooldown_s=0.0)) as adapter:
        for _ in range(rounds):
            async with asyncio.timeout(WATCHDOG_S), asyncio.TaskGroup() as group:
                for _ in range(3):
                    group.create_task(ask(adapter, drawn.choice(NAMES), drawn))
            listed = await adapter.client.ps()
            assert sum(each["size"] for each in listed) <= budget
            most = max(most, runners_bytes(adapter))
            assert most <= budget
        plans = adapter.pool.history
        assert any(each.evict for each in plans)
        for each in plans:
            assert each.takes.total <= large
    measured("real runners' memory, of the budget", most / budget, "≤ 1", "", rounds)


async def test_a_real_model_is_planned_loaded_read_back_and_unloaded(store: Path) -> None:
    async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config(store)) as adapter:
        changes: list[Change] = []
        adapter.pool.on_change(lambda change: changes.append(change.change))
        plan = await adapter.pool.plan("a", num_ctx=1024)
        assert plan.fits and not plan.advisory
        assert await adapter.pool.ensure_loaded("a", reloading={"num_ctx": 1024}) is False
        (resident,) = adapter.pool.residents()
        assert resident.num_ctx == 1024
        assert 0 < resident.footprint.total <= plan.takes.total
        answer = await adapter.generate("a", "ab", num_predict=4, num_ctx=2048)
        assert answer.statistics.warm is True
        assert adapter.pool.residents()[0].num_ctx == 1024
        await adapter.pool.unload("a")
        assert await adapter.client.ps() == []
        assert changes == [Change.LOADED, Change.UNLOADED]


async def test_the_context_of_every_request_at_a_time_is_planned(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config(store)) as adapter:
        one = await adapter.pool.plan("a", num_ctx=CONTEXT)
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "4")
    async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config(store)) as adapter:
        four = await adapter.pool.plan("a", num_ctx=CONTEXT)
        await adapter.pool.ensure_loaded("a", reloading={"num_ctx": CONTEXT})
        (resident,) = adapter.pool.residents()
    assert (four.kv_bytes, four.weights_bytes) == (4 * one.kv_bytes, one.weights_bytes)
    assert one.takes.total < resident.footprint.total <= four.takes.total


async def test_a_real_model_that_is_too_large_is_refused(store: Path) -> None:
    settings = config(store, ram_bytes=20 * MIB, substitute=False)
    async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(settings) as adapter:
        with pytest.raises(BudgetExceeded, match="20 MiB of RAM"):
            await adapter.generate("b", "ab")
        assert await adapter.client.ps() == []


async def test_a_runner_that_was_killed_is_loaded_again(store: Path) -> None:
    async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config(store)) as adapter:
        await adapter.generate("a", "ab", num_predict=2)
        assert adapter.daemon.pid is not None
        for each in psutil.Process(adapter.daemon.pid).children(recursive=True):
            if any("sha256-" in word for word in each.cmdline()):
                each.kill()
                psutil.wait_procs([each])
        await adapter.pool.plan("b")
        assert (await adapter.generate("a", "ab", num_predict=2)).statistics.tokens
        assert [each.model for each in adapter.pool.residents()] == ["a:latest"]
