"""The synchronous face: in a script, inside a running loop, interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from ollama_adapter import BlockingAdapter, Finish
from ollama_adapter.errors import AdapterError, InvalidRequest, StreamInterrupted
from ollama_adapter.testing import STREAM_HEAD, Piece, ScriptedDaemon, ScriptedRequest, chunk
from tests.serving import WATCHDOG_S, config_for, saying


class DaemonThread:
    """A scripted daemon on a loop of its own, since the caller's thread blocks."""

    def __init__(self, script: object) -> None:
        self.daemon = ScriptedDaemon(script)  # type: ignore[arg-type]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ScriptedDaemon:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.daemon.__aenter__(), self._loop).result(WATCHDOG_S)
        return self.daemon

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.stop(), self._loop).result(WATCHDOG_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def test_a_script_streams_and_asks_without_await() -> None:
    with DaemonThread(saying("a", "b")) as daemon, BlockingAdapter(config_for(daemon)) as adapter:
        assert adapter.health_check() is True
        assert adapter.health().origin == "adopted"
        with adapter.generate_stream("m", "p") as stream:
            assert [each.token for each in stream] == ["a", "b"]
        assert stream.statistics.finish is Finish.STOP
        assert adapter.generate("m", "p").text == "ab"
        with pytest.raises(InvalidRequest, match="tempature"):
            adapter.generate_stream("m", "p", tempature=1)
    adapter.close()


@pytest.mark.anyio
async def test_it_works_inside_a_running_loop() -> None:
    with DaemonThread(saying("a")) as daemon, BlockingAdapter(config_for(daemon)) as adapter:
        assert adapter.generate("m", "p").text == "a"


def test_a_stream_can_be_stopped_from_another_thread() -> None:
    endless = threading.Event()

    def script(_: ScriptedRequest) -> Iterator[Piece]:
        yield STREAM_HEAD + chunk({"response": "a", "done": False})
        endless.set()
        yield asyncio.Event()

    with DaemonThread(script) as daemon, BlockingAdapter(config_for(daemon)) as adapter:
        stream = adapter.generate_stream("m", "p", session_id="s")

        def stop() -> None:
            endless.wait(WATCHDOG_S)
            adapter.stop_generation("s")

        stopper = threading.Thread(target=stop)
        stopper.start()
        assert "".join(each.token for each in stream) in ("", "a")
        stopper.join()
        assert stream.statistics.finish is Finish.ABORTED


def test_an_error_is_raised_where_one_reads() -> None:
    def script(_: ScriptedRequest) -> list[Piece]:
        return [STREAM_HEAD + chunk({"response": "a", "done": False})]

    with DaemonThread(script) as daemon, BlockingAdapter(config_for(daemon)) as adapter:
        stream = adapter.generate_stream("m", "p")
        assert next(stream).token == "a"
        with pytest.raises(StreamInterrupted):
            next(stream)


def test_after_close_everything_says_so_and_nothing_breaks() -> None:
    with DaemonThread(saying("a")) as daemon:
        adapter = BlockingAdapter(config_for(daemon))
        stream = adapter.generate_stream("m", "p")
        adapter.close()
        adapter.close()
        assert adapter.health_check() is False
        stream.stop()
        with pytest.raises(AdapterError, match="closed"):
            next(stream)
        with pytest.raises(AdapterError, match="closed"):
            adapter.generate("m", "p")
