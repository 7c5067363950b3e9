"""Killed, cancelled, asked for twice: what has come is kept, and one flight is enough."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.to_thread import run_sync

from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import PullProgress, PullStage
from ollama_adapter.puller.pull import Puller
from tests.embedded.ggufs import gguf
from tests.puller.conftest import WATCHDOG_S, Make
from tests.registry.serving import Fault, Registry

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]
SIZE = 16 << 20
WEIGHTS = gguf(
    {"general.architecture": "llama"}, {"w": ((SIZE // 4,), os.urandom(4096) * (SIZE // 4096))}
)
MOST = len(WEIGHTS) * 7 // 10
ONE_PERCENT = len(WEIGHTS) // 100


async def held(registry: Registry) -> None:
    """Until the registry has sent what it sends before it falls silent."""
    assert await run_sync(registry.held.wait, WATCHDOG_S)


def fetchers() -> list[psutil.Process]:
    """The processes of ours that speak with a registry."""
    found = []
    for each in psutil.Process().children(recursive=True):
        try:
            if any(part.endswith("fetching.py") for part in each.cmdline()):
                found.append(each)
        except psutil.NoSuchProcess:
            continue
    return found


class Watch:
    """Progress as it comes, and a way to wait for some of it."""

    def __init__(self) -> None:
        self.seen: list[PullProgress] = []
        self._more = asyncio.Event()

    def __call__(self, progress: PullProgress) -> None:
        self.seen.append(progress)
        self._more.set()

    async def until(self, reached: Callable[[PullProgress], bool]) -> PullProgress:
        while not self.seen or not reached(self.seen[-1]):
            self._more.clear()
            await self._more.wait()
        return self.seen[-1]


def at_most(progress: PullProgress) -> bool:
    return progress.done_bytes >= MOST


@asynccontextmanager
async def pulling(puller: Puller, name: str, watch: Watch) -> AsyncIterator[asyncio.Task[object]]:
    """A pull that has come as far as the registry lets it."""
    task: asyncio.Task[object] = asyncio.create_task(puller.pull(name, watch))
    try:
        await watch.until(at_most)
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_the_process_that_fetches_may_be_killed_at_any_time(
    registry: Registry, store: Path, make: Make, measured: Callable[..., None]
) -> None:
    """It is started again, and goes on."""
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    watch = Watch()
    async with pulling(make(), name, watch) as task:
        before = fetchers()
        assert before
        for each in before:
            os.kill(each.pid, signal.SIGKILL)
        await task
    twice = registry.twice()
    measured(
        "bytes of a pull that are sent twice, its process killed at 70 %",
        100 * twice / SIZE,
        "≤ 1",
        "%",
    )
    assert twice <= ONE_PERCENT
    assert [each.start for each in registry.served[:2]] == [0, MOST - twice]
    assert Store(store, bundled=False).models()[0].weights is not None


async def test_the_whole_application_may_be_killed_and_another_goes_on(
    registry: Registry, store: Path, make: Make, measured: Callable[..., None]
) -> None:
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    argv = [sys.executable, "-m", "tests.puller.application", str(store), name, registry.host]
    process = subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        await held(registry)
        while True:
            line = await run_sync(process.stdout.readline)
            assert line, "it has ended by itself"
            if int(line.split()[1]) >= MOST:
                break
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
        process.kill()
        await run_sync(process.wait)
        _, alive = await run_sync(psutil.wait_procs, family, WATCHDOG_S)
        assert alive == []
    watch = Watch()
    await make().pull(name, watch)
    twice = registry.twice()
    measured(
        "bytes of a pull that are sent twice, the application killed at 70 %",
        100 * twice / SIZE,
        "≤ 1",
        "%",
    )
    assert twice <= ONE_PERCENT
    first = next(each for each in watch.seen if each.stage is PullStage.FETCHING)
    assert first.done_bytes >= MOST - ONE_PERCENT
    assert Store(store, bundled=False).models()[0].size > len(WEIGHTS)


async def test_a_pull_that_is_cancelled_leaves_what_has_come_and_nobody_behind(
    registry: Registry, store: Path, make: Make
) -> None:
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    puller, watch = make(), Watch()
    async with pulling(puller, name, watch) as task:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    family = fetchers()
    await run_sync(psutil.wait_procs, family, WATCHDOG_S)
    assert fetchers() == []
    assert Store(store, bundled=False).models() == []
    receipt = await puller.pull(name)
    assert registry.twice() <= ONE_PERCENT
    assert receipt.fetched_bytes < receipt.total_bytes // 2


async def test_two_that_pull_one_model_share_one_flight(registry: Registry, make: Make) -> None:
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    puller, one, two = make(), Watch(), Watch()
    async with pulling(puller, name, one) as first, pulling(puller, name.upper(), two) as second:
        first.cancel()
        await asyncio.wait([first])
        assert fetchers(), "the other one still waits"
        for each in fetchers():
            os.kill(each.pid, signal.SIGKILL)
        receipt = await second
    assert registry.twice() <= ONE_PERCENT
    assert len([path for path, _ in registry.requests if "/manifests/" in path]) == 1
    assert str(receipt).count(registry.host)


async def test_another_process_that_has_the_model_is_waited_for(
    registry: Registry, store: Path, make: Make
) -> None:
    """Each puller here stands for a process: a lock of a file is between them."""
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    one, two = Watch(), Watch()
    async with pulling(make(), name, one) as first:
        async with anyio.create_task_group() as group:
            results: list[int] = []

            async def wait_for_it() -> None:
                receipt = await make().pull(name, two)
                results.append(receipt.fetched_bytes)

            group.start_soon(wait_for_it)
            await two.until(lambda progress: progress.stage is PullStage.WAITING)
            for each in fetchers():
                os.kill(each.pid, signal.SIGKILL)
            await first
    assert results == [0]
    assert registry.twice() <= ONE_PERCENT
    assert sorted(each.name for each in store.iterdir()) == ["blobs", "manifests"]


async def test_a_callback_that_raises_ends_nothing(
    registry: Registry, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: PullProgress) -> None:
        raise RuntimeError("of somebody's own")

    receipt = await make().pull(registry.add("big", WEIGHTS), broken)
    assert receipt.fetched_bytes > SIZE
    assert "a callback for the progress of a pull raised" in caplog.text


async def test_closing_the_scope_ends_a_pull(registry: Registry, make: Make) -> None:
    name = registry.add("big", WEIGHTS)
    registry.faults = [Fault("holds", at=MOST)]
    puller, watch = make(), Watch()
    async with pulling(puller, name, watch) as task:
        await puller._scope.aclose()
        with pytest.raises(AdapterError, match="closed"):
            await task
    assert fetchers() == []
