"""One connection of a session, and a reader that reads on while it is made."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter.attempt import Attempt
from ollama_adapter.backing import Backing, Hold
from ollama_adapter.config import StreamConfig, Tier
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.guarantees import Tally
from ollama_adapter.core.records import ChatRecord, GenerateRecord
from ollama_adapter.core.requests import Request, generate_request
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import Finish, Statistics, TokenEvent
from ollama_adapter.memory import Draft, Memory
from ollama_adapter.session import Session
from ollama_adapter.system.channel import Channel
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.http import Exchange, Sink, encode_request, open_exchange
from ollama_adapter.testing import ScriptedDaemon, answer, stream
from tests.serving import WATCHDOG_S

pytestmark = pytest.mark.anyio


class Taking:
    """The owner of an attempt that has time."""

    def __init__(self) -> None:
        self.taken: list[GenerateRecord | ChatRecord] = []

    def take(self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int) -> None:
        self.taken += records

    async def too_late(self, what: str, limit_s: float) -> AdapterError:
        raise AssertionError(f"no {what} token within {limit_s} s")

    def check_reader(self, now_ns: int) -> None:
        """It may take its time."""


@pytest.mark.parametrize("reads_on", [True, False], ids=["reads_on", "waits"])
async def test_only_a_buffer_that_is_full_once_connected_holds_the_daemon_up(
    reads_on: bool,
) -> None:
    channel: Channel[str] = Channel(2, 100)
    for word in ("one", "two"):
        channel.put(word, 3)
    channel.flush()
    assert channel.full
    request = generate_request("m", "p", {}, "5m")
    owner = Taking()
    attempt = Attempt(request, owner, SystemClock())
    channel.on_drained = attempt.resume

    async with ScriptedDaemon(lambda _: [stream(answer(["three"]))]) as daemon:
        data = encode_request("POST", request.path, request.body)
        async with asyncio.timeout(WATCHDOG_S), asyncio.TaskGroup() as group:
            exchange = await open_exchange(dial_port(daemon.port), data, attempt.receive, 5.0)
            if reads_on:
                while channel.get_nowait() is not None:
                    pass
            run = attempt.run(exchange, full=channel.full, first_s=60.0, next_s=60.0, reader_s=60.0)
            ended = group.create_task(run)
            if not reads_on:
                await _until_paused(attempt)
                assert not owner.taken
                channel.discard()
            await ended
        assert attempt.finish(exchange)
    assert len(owner.taken) == 2
    attempt.close()


async def _until_paused(attempt: Attempt) -> None:
    while attempt.exchange is None or not attempt.exchange.paused:
        await checkpoint()


class ReadOn(Backing):
    """While it connects, the reader of the session reads on."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.session: Session | None = None

    def draft(self, *, private: bool) -> Draft:
        return Memory(StreamConfig(cache_bytes=0), SystemClock()).draft(private=private)

    async def load(self, hold: Hold) -> None:
        """It is there."""

    async def open(self, hold: Hold, request: Request, sink: Sink) -> Exchange:
        data = encode_request("POST", request.path, request.body)
        exchange = await open_exchange(dial_port(self._port), data, sink, 5.0)
        assert self.session is not None
        while self.session.channel.get_nowait() is not None:
            pass
        return exchange


async def test_a_session_asks_whether_its_reader_keeps_up_once_it_is_connected() -> None:
    async with ScriptedDaemon(lambda _: [stream(answer(["three"]))]) as daemon:
        backing = ReadOn(daemon.port)
        session = Session(
            generate_request("m", "p", {}, "5m"),
            Statistics("s", "m", served_by="m"),
            EUMapper(profile_for()),
            backing,
            StreamConfig(buffer_tokens=2),
            Tally(Tier.MID),
            SystemClock(),
        )
        backing.session = session
        for index in range(2):
            session.channel.put(TokenEvent("word", 0, 0, "s", "m", index=index), 4)
        session.channel.flush()
        assert session.paused
        async with asyncio.timeout(WATCHDOG_S):
            await session.run()
        assert session.statistics.finish is Finish.STOP
