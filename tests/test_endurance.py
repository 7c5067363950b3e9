"""What holds once must hold ten thousand times: aborts leave nothing behind, nobody starves.

The full counts are those of `make soak`; `make test` runs a hundredth of them.
"""

from __future__ import annotations

import array
import asyncio
import gc
import random
import resource
import secrets
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ollama_adapter import (
    Config,
    DaemonConfig,
    DaemonMode,
    Finish,
    OllamaAdapter,
    PoolConfig,
    StreamConfig,
    TokenStream,
)
from ollama_adapter.config import Sandbox
from ollama_adapter.stream import REMEMBERED
from ollama_adapter.testing import STREAM_END, STREAM_HEAD, Piece, ScriptedRequest, answer, chunk
from tests.phases import BUFFER_TOKENS, PHASES, UNSENT, WAYS, PhaseDaemon, bring
from tests.serving import collect, config_for, served, until

pytestmark = pytest.mark.anyio

ABORTS = 10_000
REAL_ABORTS = 2_000
SESSIONS = 1_000
WARMING_UP = 30
LEAK_BYTES = 128 << 10
"""In all, whatever the count: caches and free lists that were not full yet."""
CLOSE_MS = 1.0
READ_TOKENS = 16
"""Tokens of 4 KiB in the 64 KiB that are read from a socket at a time."""


@pytest.fixture
async def phased(anyio_backend: object) -> AsyncIterator[tuple[OllamaAdapter, PhaseDaemon]]:
    limits = StreamConfig(buffer_tokens=BUFFER_TOKENS)
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # it remembers where everything was made: what is measured is ours alone
    try:
        async with (
            PhaseDaemon() as daemon,
            OllamaAdapter(config_for(daemon, limits)) as adapter,
        ):
            yield adapter, daemon
    finally:
        loop.set_debug(True)


class Account:
    """What is counted over many aborts."""

    def __init__(self, count: int) -> None:
        self.after = 0
        self.late = 0
        self.close_ms = array.array("d", bytes(8 * count))  # of its full size from the start
        self.done = 0
        self.cases: Counter[tuple[str, str]] = Counter()


async def abort_once(
    adapter: OllamaAdapter, daemon: PhaseDaemon, chance: random.Random, account: Account
) -> None:
    loop = asyncio.get_running_loop()
    phase, way = chance.choice(PHASES), chance.choice(WAYS)
    account.cases[phase, way] += 1
    async with asyncio.TaskGroup() as group:
        case = await bring(phase, adapter, daemon, group)
        session, exchange = case.session, case.session.exchange
        read, began = len(case.read), loop.time()

        def look() -> None:
            closing = exchange is None or exchange._connection.fileno() < 0
            account.late += not (closing and session.ended and not session.channel)
            account.close_ms[account.done] = (loop.time() - began) * 1e3
            account.done += 1

        ending = case.begin(way)
        loop.call_soon(look)
        await asyncio.wait([ending])
        account.after += len(await collect(case.stream)) + len(case.read) - read
        await case.finish()
        assert case.stream.statistics.finish in (Finish.ABORTED, Finish.STOP)
        assert (exchange is None) == (phase in UNSENT)
    daemon.requests.clear()


async def at_rest(daemon: PhaseDaemon) -> tuple[int, int, int]:
    """How many tasks, open files and traced bytes there are once everything has ended."""
    await until(lambda: not daemon._serving)
    gc.collect()
    return (
        len(asyncio.all_tasks()),
        psutil.Process().num_fds(),
        tracemalloc.get_traced_memory()[0],
    )


async def test_aborts_at_random_phases_leave_nothing_behind(
    phased: tuple[OllamaAdapter, PhaseDaemon],
    scaled: Callable[[int], int],
    measured: Callable[..., None],
    pytestconfig: pytest.Config,
) -> None:
    adapter, daemon = phased
    chance, count = random.Random(4), scaled(ABORTS)
    tracemalloc.start()
    try:
        account, warming_up = Account(count), Account(WARMING_UP)
        # Ids of those that have ended are remembered, up to a bound: it is reached from the start.
        adapter._sessions._ended.extend(secrets.token_hex(8) for _ in range(REMEMBERED))
        for _ in range(WARMING_UP):
            await abort_once(adapter, daemon, chance, warming_up)
        before = await at_rest(daemon)
        for _ in range(count):
            await abort_once(adapter, daemon, chance, account)
        after = await at_rest(daemon)
    finally:
        tracemalloc.stop()
    assert account.done == count
    assert account.after == 0, "events were delivered after the call"
    assert account.late == 0, "a connection was not closed in the next pass of the loop"
    assert after[0] == before[0], "tasks were left behind"
    assert after[1] <= before[1], "sockets were left behind"
    assert after[2] - before[2] < LEAK_BYTES, "memory was left behind"
    waits = sorted(account.close_ms)
    what = "aborts at random phases: "
    measured(what + "events after the call", account.after, "= 0", "events", count)
    measured(what + "tasks left", after[0] - before[0], "≤ 0", "tasks", count)
    measured(what + "files and sockets left", after[1] - before[1], "≤ 0", "files", count)
    measured(what + "memory left", (after[2] - before[2]) / 1024, "", "KiB", count)
    for share in (50, 99):
        ms = waits[len(waits) * share // 100]
        measured(what + f"from the call to closed, p{share}", ms, f"≤ {CLOSE_MS:g}", "ms", count)
    if pytestconfig.getoption("--soak"):
        assert waits[len(waits) // 2] < CLOSE_MS
        assert len(account.cases) == len(PHASES) * len(WAYS)


async def test_aborts_of_a_real_model_leave_its_daemon_and_its_runner_as_they_were(
    scaled: Callable[[int], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    chance, numbers = random.Random(4), {"type": "array", "items": {"type": "integer"}}
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox=Sandbox.NONE)
    async with OllamaAdapter(Config(daemon, PoolConfig(watch_s=0.0))) as adapter:

        async def abort(take: int) -> None:
            """After so many tokens; with none, while the prompt is evaluated."""
            keywords = {"format": numbers | {"minItems": 4000}, "num_predict": 100_000}
            tokens = adapter.generate_stream("tinydoc", "x", **keywords)
            async with tokens, asyncio.TaskGroup() as group:
                reader = group.create_task(take_some(tokens, take))
                await until(lambda: reader.done() if take else tokens._session.exchange)
                await adapter.stop_generation(tokens.session_id)

        async def say() -> str:
            return (await adapter.generate("tinydoc", "x", temperature=0, num_predict=24)).text

        said = await say()
        await abort(1)
        family = psutil.Process(adapter.daemon.pid).children()
        family.append(psutil.Process(adapter.daemon.pid))
        for _ in range(WARMING_UP):
            await abort(chance.randrange(6))
        assert await say() == said
        before = [(each.pid, each.num_fds()) for each in family]
        for _ in range(scaled(REAL_ABORTS)):
            await abort(chance.randrange(6))
        assert await say() == said, "what came before an abort has changed what comes after it"
        await until(lambda: [(each.pid, each.num_fds()) for each in family] == before)
        assert len(psutil.Process(adapter.daemon.pid).children()) == len(family) - 1


async def take_some(tokens: TokenStream, count: int) -> None:
    """So many tokens, or, where that is 0, whatever comes."""
    async for event in tokens:
        if event.index + 1 == count:
            return


# Many at once


@pytest.fixture
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, 8 * SESSIONS)), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Choir:
    """A daemon that begins all its answers at the same moment."""

    def __init__(self, words: int) -> None:
        self.begin = asyncio.Event()
        self.asked = 0
        records = answer([f"{place:04096d}" for place in range(words)])
        self._pieces = [STREAM_HEAD, *map(chunk, records), STREAM_END]

    def __call__(self, _: ScriptedRequest) -> Iterator[Piece]:
        self.asked += 1
        yield self.begin
        yield from self._pieces


async def test_many_sessions_at_once_do_not_starve_one_another(
    scaled: Callable[[int], int], many_files: None
) -> None:
    count, words, far = scaled(SESSIONS), 6 * READ_TOKENS, 3 * READ_TOKENS
    choir = Choir(words)
    received = [0] * count
    behind: list[int] = []  # how many had nothing yet when another got far ahead

    async def read(place: int, tokens: TokenStream) -> None:
        async for event in tokens:
            assert event.index == received[place]
            received[place] += 1
            if received[place] == far:
                behind.append(received.count(0))

    async with served(choir, StreamConfig(connect_s=60)) as (adapter, _):
        async with asyncio.TaskGroup() as group:
            for place in range(count):
                group.create_task(read(place, adapter.generate_stream("m", "p")))
            await until(lambda: choir.asked == count)
            choir.begin.set()
    assert received == [words] * count, "tokens were lost"
    assert len(behind) == count and not any(behind), "some waited while others got far ahead"


async def test_readers_that_do_not_read_hold_up_nobody_but_themselves(
    scaled: Callable[[int], int], many_files: None
) -> None:
    count, words = scaled(SESSIONS), 6 * READ_TOKENS
    choir = Choir(words)
    async with served(choir, StreamConfig(connect_s=60, buffer_tokens=8)) as (adapter, _):
        streams = [adapter.generate_stream("m", "p") for _ in range(count)]
        idle, busy = streams[: count // 2], streams[count // 2 :]
        async with asyncio.TaskGroup() as group:
            firsts = [group.create_task(anext(each)) for each in idle]
            readers = [group.create_task(collect(each)) for each in busy]
            await until(lambda: choir.asked == count)
            choir.begin.set()
        assert [len(each.result()) for each in readers] == [words] * len(busy)
        assert all(each.done() for each in firsts)
        for each in idle:
            assert each.statistics.finish is None, "its buffer holds more than it may"
            assert [event.index for event in await collect(each)] == list(range(1, words))
