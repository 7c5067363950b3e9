"""A daemon over real TCP that says exactly what a script tells it to, byte for byte. It knows no model."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Self

from ollama_adapter.config import LOOPBACK
from ollama_adapter.system.scope import TaskScope


@dataclass(frozen=True, slots=True)
class ScriptedRequest:
    """What the client sent."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes = field(repr=False)

    def json(self) -> Any:
        return json.loads(self.body)


Piece = bytes | asyncio.Event | None
"""Bytes go out as one write; an Event is waited for; None resets the connection."""
Script = Callable[[ScriptedRequest], Iterable[Piece]]


def response(body: bytes, status: int = 200, kind: str = "application/json") -> bytes:
    """A whole HTTP response."""
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def json_response(value: Any, status: int = 200) -> bytes:
    return response(json.dumps(value).encode(), status)


BACKLOG = 1024  # a thousand clients may come at once

STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def chunk(record: Any) -> bytes:
    """One record as the daemon sends it: a line, which is a chunk."""
    line = json.dumps(record).encode() + b"\n"
    return b"%x\r\n%b\r\n" % (len(line), line)


def stream(records: Iterable[Any], *, end: bool = True) -> bytes:
    """A whole streamed answer."""
    return STREAM_HEAD + b"".join(map(chunk, records)) + (STREAM_END if end else b"")


def answer(words: Iterable[str], **last: Any) -> list[dict[str, Any]]:
    """The records of a generation that ends well."""
    records: list[dict[str, Any]] = [{"response": each, "done": False} for each in words]
    final = {"response": "", "done": True, "done_reason": "stop", "eval_count": len(records)}
    return [*records, final | last]


class ScriptedDaemon:
    """Serves one script on a loopback port: the housekeeping endpoints answer by themselves.

    `requests` holds what came; `closed` counts the connections that the client has dropped; `resident`
    is what it says to hold in memory, as /api/ps lists it, and `models` what it has, as /api/tags does.
    """

    def __init__(self, script: Script, *, version: str = "0.32.15") -> None:
        self._script = script
        self._version = version
        self._server: asyncio.Server | None = None
        self._serving: dict[asyncio.Task[Any], asyncio.StreamWriter] = {}
        self._scope = TaskScope()
        self.requests: list[ScriptedRequest] = []
        self.closed = 0
        self.resident: list[dict[str, Any]] = []
        self.models: list[dict[str, Any]] = []
        self.port = 0

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, LOOPBACK, self.port, backlog=BACKLOG)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Close the port and reset every connection. Idempotent."""
        if self._server is not None:
            self._server.close()
            for writer in self._serving.values():
                writer.transport.abort()
            if self._serving:
                await asyncio.wait(list(self._serving))
            await self._server.wait_closed()
            await self._scope.aclose()
            self._server = None

    def generations(self) -> list[ScriptedRequest]:
        """The requests that carried a prompt."""
        return [each for each in self.requests if _is_generation(each)]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving[task] = writer
        task.add_done_callback(lambda _: self._serving.pop(task))
        try:
            request = await _read_request(reader)
            self.requests.append(request)
            gone = asyncio.Event()
            watcher = self._scope.spawn(_watch(reader, gone), name="scripted reader")
            try:
                for piece in self._pieces(request):
                    if not await _send(piece, writer, gone):
                        self.closed += 1
                        break
            finally:
                watcher.cancel()
        except (OSError, asyncio.IncompleteReadError):
            self.closed += 1
        finally:
            writer.close()

    def _pieces(self, request: ScriptedRequest) -> Iterable[Piece]:
        if request.path == "/api/version":
            return [json_response({"version": self._version})]
        if request.path == "/api/show":
            return [json_response({"capabilities": ["completion"]})]
        if request.path == "/api/tags":
            return [json_response({"models": self.models})]
        if request.path == "/api/ps":
            return [json_response({"models": self.resident})]
        if request.path in ("/api/generate", "/api/embed") and not _is_generation(request):
            return [json_response({"response": "", "done": True, "done_reason": "load"})]
        return self._script(request)


def _is_generation(request: ScriptedRequest) -> bool:
    if request.path not in ("/api/generate", "/api/chat", "/api/embed"):
        return False
    body = request.json()
    return bool(body.get("prompt") or body.get("messages") or body.get("input"))


async def _read_request(reader: asyncio.StreamReader) -> ScriptedRequest:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
    first, *lines = head.split("\r\n")
    method, path, _ = first.split(" ", 2)
    headers = dict(line.lower().split(": ", 1) for line in lines if line)
    body = await reader.readexactly(int(headers.get("content-length", "0")))
    return ScriptedRequest(method, path, headers, body)


async def _watch(reader: asyncio.StreamReader, gone: asyncio.Event) -> None:
    """Set `gone` when the client closes its side."""
    with contextlib.suppress(OSError):
        while await reader.read(1024):
            pass
    gone.set()


async def _send(piece: Piece, writer: asyncio.StreamWriter, gone: asyncio.Event) -> bool:
    """Carry out one piece; False when the client has gone."""
    if piece is None:
        writer.transport.abort()
    elif isinstance(piece, bytes):
        writer.write(piece)
        await writer.drain()
    else:
        await _first_of(piece, gone)
    return not gone.is_set()


async def _first_of(*events: asyncio.Event) -> None:
    async with asyncio.TaskGroup() as group:
        waits = [group.create_task(each.wait()) for each in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for each in waits:
            each.cancel()
