"""Rogue servers: what else may listen where a daemon is expected, and what it may send.

A rogue is a function of a few lines that has the wire to itself once a request has come. Each may strike
at every stage of a generation; until then its server answers as Ollama does. ENDS says how the
client's call ends for each: by the name of the error, or WELL where what is odd about it does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final


class Stage(StrEnum):
    """The request at which the rogue shows itself, in the order in which they are made."""

    PROBE = "probe"
    SHOW = "show"
    RESIDENTS = "residents"
    LOAD = "load"
    GENERATE = "generate"
    EMBED = "embed"


PATHS: Final = {
    "/api/version": Stage.PROBE,
    "/api/show": Stage.SHOW,
    "/api/tags": Stage.RESIDENTS,  # what it has, and what it holds in memory: both are such a list
    "/api/ps": Stage.RESIDENTS,
    "/api/generate": Stage.GENERATE,
    "/api/embed": Stage.EMBED,
}
WITH_PROMPT: Final = (Stage.GENERATE, Stage.EMBED)
HONEST: Final[Mapping[Stage, dict[str, Any]]] = {
    Stage.PROBE: {"version": "0.32.15"},
    Stage.SHOW: {"capabilities": ["completion"]},
    Stage.RESIDENTS: {"models": []},
    Stage.LOAD: {"response": "", "done": True, "done_reason": "load"},
    Stage.GENERATE: {"response": "yes", "done": True, "done_reason": "stop"},
    Stage.EMBED: {"embeddings": [[0.5, 0.5]], "prompt_eval_count": 1},
}
OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
BLOCK: Final = 1 << 16
WELL, SILENCE = "", "ReadTimeout"
BROKEN, CUT, REFUSED = "ProtocolError", "ConnectionLost", "ResponseError"


def stage_of(request: bytes) -> Stage:
    head, _, body = request.partition(b"\r\n\r\n")
    path = head.split(b" ", 2)[1].decode()
    if path == "/api/generate" and not json.loads(body).get("prompt"):
        return Stage.LOAD
    return PATHS[path]


@dataclass
class Wire:
    """The rogue's end of a connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    stage: Stage
    request: bytes
    elsewhere: int  # the port of a recorder: nobody may ever connect to it
    sent: int = 0

    @property
    def honest(self) -> bytes:
        return json.dumps(HONEST[self.stage]).encode()

    async def say(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            self.sent += len(piece)
            await self.writer.drain()

    async def answer(self, body: bytes, *headers: bytes, status: int = 200) -> None:
        """One whole response, of one line."""
        head = [b"HTTP/1.1 %d X" % status, b"Content-Length: %d" % (len(body) + 1), *headers]
        await self.say(b"\r\n".join(head) + b"\r\n\r\n" + body + b"\n")

    async def value(self, **changed: Any) -> None:
        await self.answer(json.dumps(HONEST[self.stage] | changed).encode())

    async def for_ever(self, piece: bytes) -> None:
        """Until the client leaves: then `say` raises."""
        while True:
            await self.say(piece)
            await asyncio.sleep(0)  # noqa: TID251 - a client that never leaves must not stop the loop

    async def drip(self, piece: bytes = b"z") -> None:
        """A few bytes now and then, for ever: a limit that starts anew with each would never end."""
        while True:
            await self.say(piece)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.02):
                    await self.hold()

    async def hold(self) -> None:
        """Say nothing until the client leaves."""
        await self.reader.read()
        raise ConnectionResetError

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Behave = Callable[[Wire], Awaitable[None]]
ROGUES: dict[str, Behave] = {}
ENDS: dict[str, dict[Stage, str]] = {}
WAITING: set[str] = set()  # those that only a limit in time can end


def rogue(end: str, **at: str) -> Callable[[Behave], Behave]:
    """Enter a behaviour into the table: how it ends, and at which stages it ends otherwise."""

    def enter(behave: Behave) -> Behave:
        add(behave.__name__, behave, end, **at)
        return behave

    return enter


def add(name: str, behave: Behave, end: str, **at: str) -> None:
    ROGUES[name] = behave
    ENDS[name] = {stage: at.get(stage.value, end) for stage in Stage}
    if SILENCE in ENDS[name].values():
        WAITING.add(name)
    if ENDS[name][Stage.PROBE] != WELL:
        ENDS[name][Stage.PROBE] = "NotOllama"  # whatever it did: it is not whom we look for
    if ENDS[name][Stage.LOAD] == SILENCE:
        ENDS[name][Stage.LOAD] = "ModelLoadFailed"
    if ENDS[name][Stage.GENERATE] == CUT:
        ENDS[name][Stage.GENERATE] = "StreamInterrupted"


def add_at(stage: Stage, name: str, behave: Behave, end: str) -> None:
    """One that makes sense at one stage only."""
    assert name not in ROGUES
    ROGUES[name] = behave
    ENDS[name] = {stage: end}


def says(name: str, end: str, *pieces: bytes, hold: bool = False, **at: str) -> None:
    """A rogue that has one thing to say, then hangs up, or holds the line."""

    async def behave(wire: Wire) -> None:
        await wire.say(*pieces)
        if hold:
            await wire.hold()

    add(name, behave, end, **at)


def body(name: str, end: str, *pieces: bytes, **at: str) -> None:
    """A rogue whose HTTP is fine and whose body is not; `$` stands for the honest answer's fields."""

    async def behave(wire: Wire) -> None:
        fields = wire.honest[1:-1]
        await wire.answer(b"".join(pieces).replace(b"$", fields))

    add(name, behave, end, **at)


def head(name: str, end: str, *headers: bytes, status: int = 200, **at: str) -> None:
    """A rogue with an honest body and an odd head; `ELSEWHERE` stands for the recorder."""

    async def behave(wire: Wire) -> None:
        address = b"127.0.0.1:%d" % wire.elsewhere
        told = [each.replace(b"ELSEWHERE", address) for each in headers]
        await wire.answer(wire.honest, *told, status=status)

    add(name, behave, end, **at)


def with_field(field_name: str, value: Any, end: str, stage: Stage, kind: str = "") -> None:
    """A rogue that puts the wrong value into one field, at the stage where that field is read."""

    async def behave(wire: Wire) -> None:
        await wire.value(**{field_name: value})

    add_at(stage, f"{stage}_{field_name}_is_{kind or type(value).__name__}", behave, end)
