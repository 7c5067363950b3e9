"""The synchronous face: in a script, inside a running loop, interrupted."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator

import pytest

from ollama_adapter import BlockingAdapter, Finish
from ollama_adapter.errors import (
    AdapterError,
    InvalidRequest,
    SessionNotFound,
    StreamInterrupted,
)
from ollama_adapter.events import AbortReceipt, Phase
from ollama_adapter.testing import STREAM_HEAD, Piece, ScriptedRequest, chunk
from tests.serving import WATCHDOG_S, DaemonThread, config_for, saying


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


def test_an_abort_from_another_thread_gives_its_receipt() -> None:
    def script(_: ScriptedRequest) -> Iterator[Piece]:
        yield STREAM_HEAD + chunk({"response": "a", "done": False})
        yield asyncio.Event()

    with DaemonThread(script) as daemon, BlockingAdapter(config_for(daemon)) as adapter:
        stream = adapter.generate_stream("m", "p", session_id="s")
        assert next(stream).token == "a"
        receipts: list[AbortReceipt] = []
        stopper = threading.Thread(target=lambda: receipts.append(adapter.abort("s")))
        stopper.start()
        assert list(stream) == []
        stopper.join()
        assert (receipts[0].phase, receipts[0].events_after) == (Phase.DECODING, 0)
        assert adapter.abort("s").phase is Phase.ENDED
        with pytest.raises(SessionNotFound):
            adapter.abort("never was")


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
