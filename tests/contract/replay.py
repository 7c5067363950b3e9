"""Replays raw recordings of the real daemon through the client, and says what a caller gets.

The bytes go into the protocol exactly as sliced, so that a slicing means what it says; the socket
under it is real, and its end is the end of the recording.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_adapter.backing import Backing, Hold
from ollama_adapter.client import OllamaClient
from ollama_adapter.config import StreamConfig, Tier
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.guarantees import Tally
from ollama_adapter.core.requests import Request
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import Channel, Statistics, TokenEvent
from ollama_adapter.memory import Draft, Memory
from ollama_adapter.session import Session
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.http import Exchange, Sink

DATA = Path(__file__).parent / "data"
GENERATING = ("/api/generate", "/api/chat")
WATCHDOG_S = 30.0


@dataclass(frozen=True)
class Recording:
    name: str
    method: str
    path: str
    body: str
    end: str | None
    reads: tuple[bytes, ...]

    @property
    def wire(self) -> bytes:
        return b"".join(self.reads)

    @property
    def generates(self) -> bool:
        return self.method == "POST" and self.path in GENERATING


def load_recordings() -> list[Recording]:
    lines = (DATA / "recordings.jsonl").read_text("utf-8").splitlines()
    return [_recording(json.loads(line)) for line in lines]


def _recording(raw: dict[str, Any]) -> Recording:
    request = raw["request"]
    reads = tuple(each["data"].encode("latin-1") for each in raw["reads"])
    return Recording(
        raw["name"], request["method"], request["path"], request["body"], raw["end"], reads
    )


def slicings(recording: Recording) -> Iterator[tuple[str, list[bytes]]]:
    """The same bytes, cut as they came, not at all, small, and right after and before each \\n."""
    wire = recording.wire
    yield "as it came", list(recording.reads)
    yield "in one piece", [wire]
    step = 1 if len(wire) < 4096 else 61
    yield f"in pieces of {step}", [wire[at : at + step] for at in range(0, len(wire), step)]
    yield "after every line", wire.splitlines(keepends=True)
    yield "before every line feed", _before(wire, b"\n")


def _before(wire: bytes, mark: bytes) -> list[bytes]:
    head, *rest = wire.split(mark)
    return [head, *(mark + each for each in rest)]


@dataclass
class Outcome:
    """What a caller gets: `how` is the finish, or the name of the error raised."""

    how: str
    events: list[TokenEvent] = field(default_factory=list)
    statistics: Statistics | None = None
    error: AdapterError | None = None

    def text(self, channel: Channel) -> str:
        return "".join(each.token for each in self.events if each.channel is channel)


class Wire:
    """A client on one end of a socket pair, and a hand that feeds its protocol."""

    def __init__(self) -> None:
        self.ours, self.theirs = socket.socketpair()
        self.ours.setblocking(False)
        self.client = OllamaClient(self._dial, connect_s=5.0)

    async def _dial(self) -> socket.socket:
        return self.ours

    def feed(self, exchange: Exchange, pieces: list[bytes], end: str | None) -> None:
        for piece in pieces:
            exchange.receive(piece)
        if end != "complete":
            self.theirs.close()

    def close(self) -> None:
        self.ours.close()
        self.theirs.close()


class Replayed(Backing):
    """A daemon that is a recording: ready, and with its model in memory."""

    def __init__(self, wire: Wire, pieces: list[bytes], end: str | None) -> None:
        self._wire, self._pieces, self._end = wire, pieces, end

    def draft(self, *, private: bool) -> Draft:
        return Memory(StreamConfig(cache_bytes=0), SystemClock()).draft(private=private)

    def remember(self, *_: object) -> None:
        """Nothing is asked twice."""

    async def load(self, hold: Hold) -> None:
        """It is there."""

    async def open(self, hold: Hold, request: Request, sink: Sink) -> Exchange:
        exchange = await self._wire.client.generate(request, sink)
        self._wire.feed(exchange, self._pieces, self._end)
        return exchange


async def replay_generation(recording: Recording, pieces: list[bytes]) -> Outcome:
    """Through the session, as generate_stream and chat_stream do it."""
    wire = Wire()

    request = Request(recording.path, "m", recording.body.encode(), "5m", {}, truncate=True)
    session = Session(
        request,
        Statistics("s", "m", served_by="m"),
        EUMapper(profile_for("fnd-002/2", Tier.MID)),
        Replayed(wire, pieces, recording.end),
        StreamConfig(resume_tries=0),
        Tally(Tier.MID),
        SystemClock(),
    )
    outcome = Outcome("")
    try:
        async with asyncio.timeout(WATCHDOG_S), asyncio.TaskGroup() as group:
            group.create_task(session.run())
            while (event := await session.channel.get()) is not None:
                outcome.events.append(event)
    except* AdapterError as errors:
        (error,) = errors.exceptions
        assert isinstance(error, AdapterError)
        outcome.error = error
    finally:
        wire.close()
    outcome.statistics = session.statistics
    finish = session.statistics.finish
    outcome.how = type(outcome.error).__name__ if outcome.error else str(finish)
    return outcome


async def replay_call(recording: Recording) -> str:
    """Through the client's method for the endpoint: "ok", or the name of the error raised."""
    wire = Wire()
    loop = asyncio.get_running_loop()

    def respond() -> None:
        wire.theirs.setblocking(True)
        wire.theirs.sendall(recording.wire)
        if recording.end != "complete":
            wire.theirs.close()

    loop.call_soon(respond)
    try:
        async with asyncio.timeout(WATCHDOG_S):
            await _call(wire.client, recording)
        return "ok"
    except AdapterError as error:
        return type(error).__name__
    finally:
        wire.close()


async def _call(client: OllamaClient, recording: Recording) -> None:
    request = Request(
        recording.path, "m", recording.body.encode(), "5m", {}, texts=_texts(recording)
    )
    match recording.method, recording.path:
        case "GET", "/api/version":
            await client.version()
        case _, "/api/tags":
            await client.tags()
        case "GET", "/api/ps":
            await client.ps()
        case "POST", "/api/show":
            await client.show("m")
        case "POST", "/api/embed":
            await client.embed(request, 5.0)
        case "POST", "/api/copy":
            await client.copy("m", "n")
        case "DELETE", "/api/delete":
            await client.delete("m")
        case method, path:
            raise AssertionError(f"no method of the client asks {method} {path}")


def _texts(recording: Recording) -> int:
    """How many vectors were asked for; the longest bodies were not recorded whole, and ask for one."""
    try:
        asked = json.loads(recording.body).get("input")
    except ValueError:
        return 1
    return len(asked) if isinstance(asked, list) else 1


CALLS = ("/api/version", "/api/tags", "/api/ps", "/api/show", "/api/embed", "/api/copy")


def is_call(recording: Recording) -> bool:
    """The client has a method for it."""
    if recording.path == "/api/delete":
        return True
    return recording.path in CALLS and recording.method in ("GET", "POST")
