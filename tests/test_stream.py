"""Streams end when they are told to: in every phase, by every way, at once."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter import (
    Config,
    DaemonConfig,
    DaemonMode,
    Finish,
    OllamaAdapter,
    StreamConfig,
    TokenStream,
)
from ollama_adapter.errors import GenerationError, ReaderGone, SessionNotFound
from ollama_adapter.events import AbortReceipt, Phase
from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    Script,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
)
from tests.phases import BUFFER_TOKENS, PHASES, SLOW, UNSENT, WAYS, PhaseDaemon, bring
from tests.serving import WATCHDOG_S, DaemonThread, collect, config_for, served, text_of, until

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def phased() -> AsyncIterator[tuple[OllamaAdapter, PhaseDaemon]]:
    limits = StreamConfig(buffer_tokens=BUFFER_TOKENS)
    async with (
        PhaseDaemon() as daemon,
        OllamaAdapter(config_for(daemon, limits)) as adapter,
    ):
        async with asyncio.timeout(WATCHDOG_S):
            yield adapter, daemon


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("way", WAYS)
async def test_every_way_closes_in_every_phase_within_one_pass_of_the_loop(
    phase: str, way: str
) -> None:
    async with phased() as (adapter, daemon), asyncio.TaskGroup() as group:
        case = await bring(phase, adapter, daemon, group)
        session, exchange = case.session, case.session.exchange
        assert (exchange is None) == (phase in UNSENT)
        finished, read, closed = session.ended, len(case.read), daemon.closed
        seen: list[tuple[bool, bool, int]] = []

        def look() -> None:
            closing = exchange is None or exchange._connection.fileno() < 0
            seen.append((session.ended, closing, len(session.channel)))

        ending = case.begin(way)
        asyncio.get_running_loop().call_soon(look)
        await asyncio.wait([ending])
        assert seen == [(True, True, 0)], "ended, closing, and nothing left to read"
        result = None if ending.cancelled() else ending.result()
        assert isinstance(result, AbortReceipt) == (way == "abort")

        await case.stream.stop()
        await adapter.stop_generation(case.stream.session_id)  # it has ended: nothing
        assert await collect(case.stream) == []
        await case.finish()
        assert len(case.read) == read, "a token was delivered after the end"
        assert case.stream.statistics.finish is (Finish.STOP if finished else Finish.ABORTED)
        if exchange is not None and not finished:
            await until(lambda: daemon.closed == closed + 1)


async def test_a_load_goes_on_for_the_others_and_is_given_up_with_the_last() -> None:
    async with phased() as (adapter, daemon):
        streams = [adapter.generate_stream(SLOW, "all") for _ in range(3)]
        async with asyncio.TaskGroup() as group:
            readers = [group.create_task(collect(each)) for each in streams]
            await until(lambda: adapter.pool.is_loading(SLOW))
            await until(lambda: any(not each.json().get("prompt", "x") for each in posts(daemon)))
            await streams[0].stop()
            assert daemon.closed == 0, "the load of the others was dropped"
            await streams[1].stop()
            await streams[2].stop()
            await until(lambda: daemon.closed == 1)
            assert not adapter.pool.is_loading(SLOW)
            daemon.load.set()
            assert text_of(await collect(adapter.generate_stream(SLOW, "all"))) == "abcd"
        assert [each.result() for each in readers] == [[], [], []]


def posts(daemon: ScriptedDaemon) -> list[ScriptedRequest]:
    return [each for each in daemon.requests if each.path == "/api/generate"]


async def test_an_id_that_never_was_is_an_error_with_a_hint() -> None:
    async with phased() as (adapter, _):
        for way in (adapter.stop_generation, adapter.abort):
            with pytest.raises(SessionNotFound) as caught:
                await way("never was")
            assert caught.value.session_id == "never was"
            assert "session_id" in caught.value.hint


async def test_cancelling_a_step_is_no_abort_and_cancelling_the_block_is() -> None:
    async with phased() as (adapter, daemon), asyncio.TaskGroup() as group:
        case = await bring("waiting for a token", adapter, daemon, group)
        case.reader.cancel()
        await asyncio.wait([case.reader])
        assert case.stream.statistics.finish is Finish.ABORTED

        tokens = adapter.generate_stream("loaded", "some")
        assert [(await anext(tokens)).token for _ in "abc"] == list("abc")
        step = group.create_task(anext(tokens, None))
        await checkpoint()
        step.cancel()
        await asyncio.wait([step])
        assert tokens.statistics.finish is None
        await tokens.stop()


async def test_a_reader_that_is_cancelled_without_async_with_lets_go_by_being_forgotten() -> None:
    async def read(adapter: OllamaAdapter) -> None:
        async for _ in adapter.generate_stream("loaded", "some"):
            pass

    async with phased() as (adapter, daemon), asyncio.TaskGroup() as group:
        with pytest.warns(ResourceWarning, match="async with"):
            reader = group.create_task(read(adapter))
            await until(daemon.generations)
            reader.cancel()
            await asyncio.wait([reader])
            del reader  # its exception holds on to the frame, and that to the stream
            gc.collect()
        await until(lambda: daemon.closed == 1)


async def test_a_forgotten_stream_is_aborted_even_where_its_warning_is_an_error() -> None:
    raised: list[object] = []
    async with phased() as (adapter, daemon):
        tokens = adapter.generate_stream("loaded", "some")
        await anext(tokens)
        with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
            warnings.simplefilter("error")
            patch.setattr("sys.unraisablehook", lambda args: raised.append(args.exc_type))
            del tokens
            gc.collect()
        await until(lambda: daemon.closed == 1)
    assert raised == [ResourceWarning]


async def test_a_consumer_that_raises_in_the_middle_gets_its_own_error_and_the_daemon_is_free() -> (
    None
):
    async with phased() as (adapter, daemon):
        with pytest.raises(ZeroDivisionError):
            async with adapter.generate_stream("loaded", "some") as tokens:
                async for _ in tokens:
                    raise ZeroDivisionError
        assert tokens.statistics.finish is Finish.ABORTED
        await until(lambda: daemon.closed == 1)


async def test_two_aborts_at_once_are_one() -> None:
    async with phased() as (adapter, daemon), asyncio.TaskGroup() as group:
        case = await bring("decoding", adapter, daemon, group)
        tasks = [case.begin(way) for way in ("abort", "stop_generation", "abort", "stop")]
        await asyncio.wait(tasks)
        assert [each.exception() for each in tasks] == [None] * 4
        await case.finish()
        await until(lambda: daemon.closed == 1)


# Readers that are slow, or gone


def filling(dropped: list[int]) -> Script:
    """A daemon that sends without end, and notes in `dropped` how many answers were dropped."""

    def script(_: ScriptedRequest) -> Iterator[Piece]:
        yield STREAM_HEAD
        try:
            for _number in range(100_000):
                yield chunk({"response": "x" * 16_384, "done": False})
        finally:
            dropped.append(1)

    return script


async def test_a_reader_that_is_gone_is_given_up_and_its_slot_is_free() -> None:
    dropped: list[int] = []
    limits = StreamConfig(buffer_tokens=4, reader_s=0.05)
    async with served(filling(dropped), limits) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        first = await anext(tokens)
        await until(lambda: tokens.statistics.finish)
        await until(lambda: dropped)
        assert tokens.statistics.finish is Finish.FAILED
        assert tokens.statistics.error == "ReaderGone"
        left = []
        with pytest.raises(ReaderGone, match=r"0\.05 s") as gone:
            async for event in tokens:
                left.append(event)
        assert gone.value.session_id == tokens.session_id
        assert [each.index for each in (first, *left)] == list(range(len(left) + 1))
        assert tokens.statistics.tokens == len(left) + 1, "what it had not read was lost"


async def test_a_reader_that_is_slow_is_waited_for() -> None:
    """It reads less often than the limit says, but it reads: its buffer never drains."""
    records = answer(["x" * 16_384] * 600)
    limits = StreamConfig(buffer_tokens=512, reader_s=0.2, next_token_s=0.2)
    pieces = [STREAM_HEAD, *map(chunk, records), STREAM_END]
    async with served(lambda _: pieces, limits) as (adapter, _daemon):
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        await until(lambda: tokens._session.paused)
        began = asyncio.get_running_loop().time()
        while asyncio.get_running_loop().time() < began + 1.0:
            await anext(tokens)
            await until_later(0.02)
        assert tokens.statistics.finish is None
        assert len(await collect(tokens)) > 500


async def until_later(seconds: float) -> None:
    """Let that much time pass: here it is time itself that is tested."""
    await asyncio.wait([asyncio.get_running_loop().create_future()], timeout=seconds)


# An event loop that is closed under a session


def one_token(port: int) -> tuple[asyncio.AbstractEventLoop, OllamaAdapter, TokenStream]:
    """A stream in the middle, in a loop that does not run any more."""
    settings = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    loop = asyncio.new_event_loop()
    adapter = OllamaAdapter(settings)
    tokens = adapter.generate_stream("loaded", "some")

    async def step() -> None:
        assert (await anext(tokens)).token == "a"

    loop.run_until_complete(step())
    return loop, adapter, tokens


def one_held_up(
    daemon: ScriptedDaemon,
) -> tuple[asyncio.AbstractEventLoop, OllamaAdapter, TokenStream]:
    """A stream whose reader does not keep up, in a loop that does not run any more."""
    loop = asyncio.new_event_loop()
    adapter = OllamaAdapter(config_for(daemon, StreamConfig(buffer_tokens=BUFFER_TOKENS)))
    tokens = adapter.generate_stream("loaded", "flood")

    async def begin() -> None:
        assert (await anext(tokens)).token == "a"
        await until(lambda: tokens._session.paused)

    loop.run_until_complete(begin())
    return loop, adapter, tokens


async def read_into(read: list[str], tokens: TokenStream) -> None:
    async for event in tokens:
        read.append(event.token)


def one_load(
    daemon: ScriptedDaemon,
) -> tuple[asyncio.AbstractEventLoop, OllamaAdapter, TokenStream]:
    """A stream whose model is being loaded, in a loop that does not run any more."""
    loop, adapter = asyncio.new_event_loop(), OllamaAdapter(config_for(daemon))
    tokens = adapter.generate_stream(SLOW, "some")

    async def begin() -> None:
        step = asyncio.get_running_loop().create_task(collect(tokens))
        await until(lambda: len(posts(daemon)) == 1)
        assert not step.done()

    loop.run_until_complete(begin())
    return loop, adapter, tokens


def test_a_loop_that_ends_as_it_should_ends_its_streams() -> None:
    with DaemonThread(PhaseDaemon()) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        tokens = adapter.generate_stream("loaded", "some")

        async def step() -> None:
            assert (await anext(tokens)).token == "a"

        asyncio.run(step())
        assert tokens.statistics.finish is Finish.ABORTED
        assert text_of(asyncio.run(collect(tokens))) == "bc"
        asyncio.run(adapter.stop_generation(tokens.session_id))
        asyncio.run(adapter.aclose())
    assert daemon.closed == 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncio's own word about sockets
def test_a_loop_that_is_closed_under_a_session_leaves_no_reader_waiting() -> None:
    with DaemonThread(PhaseDaemon()) as daemon:
        loop, adapter, tokens = one_token(daemon.port)
        loop.close()
        asyncio.run(adapter.stop_generation(tokens.session_id))
        assert asyncio.run(collect(tokens)) == []
        assert tokens.statistics.finish is Finish.ABORTED
        assert not adapter.pool.at_work(), "its model is not held for ever"
        receipt = asyncio.run(adapter.abort(tokens.session_id))
        assert receipt.phase is Phase.ENDED
        asyncio.run(adapter.aclose())
        del adapter, tokens, loop

        loop, adapter, tokens = one_token(daemon.port)
        loop.close()
        with pytest.raises(GenerationError, match="another event loop"):
            asyncio.run(collect(tokens))
        assert asyncio.run(collect(tokens)) == []
        asyncio.run(adapter.aclose())
        del adapter, tokens, loop
        gc.collect()
        asyncio.run(until(lambda: daemon.closed == 2))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("way", ["stop", "read", "aclose", "forget"])
def test_a_loop_that_is_closed_while_the_daemon_is_held_up_leaves_no_noise(way: str) -> None:
    with DaemonThread(PhaseDaemon()) as daemon:
        loop, adapter, tokens = one_held_up(daemon)
        loop.close()
        if way == "stop":
            asyncio.run(adapter.stop_generation(tokens.session_id))
            assert asyncio.run(collect(tokens)) == []
        elif way == "read":
            read: list[str] = []
            with pytest.raises(GenerationError, match="another event loop"):
                asyncio.run(read_into(read, tokens))
            assert "".join(read[:2]) == "bc", "what has come is still there"
        elif way == "aclose":
            asyncio.run(adapter.aclose())
            assert tokens.statistics.finish is Finish.ABORTED
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            del tokens
            gc.collect()  # an exception that is ignored here fails this test
        asyncio.run(adapter.aclose())
        del adapter, loop
        gc.collect()
        asyncio.run(until(lambda: daemon.closed == 1))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_loop_that_is_closed_while_a_model_loads_leaves_no_noise_and_no_load() -> None:
    with DaemonThread(PhaseDaemon()) as daemon:
        loop, adapter, tokens = one_load(daemon)
        loop.close()
        asyncio.run(adapter.stop_generation(tokens.session_id))
        asyncio.run(adapter.aclose())
        del adapter, tokens, loop
        gc.collect()  # an exception that is ignored here fails this test
        asyncio.run(until(lambda: daemon.closed == 1))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.parametrize("sandbox", ["enforced", "none"])
def test_a_daemon_whose_loop_was_closed_can_still_be_stopped(
    sandbox: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox=sandbox)  # type: ignore[arg-type]
    adapter = OllamaAdapter(Config(daemon=daemon))
    loop = asyncio.new_event_loop()
    loop.run_until_complete(adapter.ensure_running())
    assert adapter.daemon.pid is not None
    spawned = psutil.Process(adapter.daemon.pid)
    loop.close()
    asyncio.run(adapter.aclose())
    assert psutil.wait_procs([spawned], WATCHDOG_S)[1] == []
    del adapter, loop
    gc.collect()
