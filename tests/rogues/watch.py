"""A rogue's server, and who watches that nobody else is talked to."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from ollama_adapter.system.listeners import AF_NETLINK
from ollama_adapter.testing import json_response
from tests.rogues.wire import HONEST, Behave, Stage, Wire, stage_of


@dataclass
class Server:
    """Honest until `stage`, then the rogue's. It keeps whatever it is sent."""

    behave: Behave
    stage: Stage
    elsewhere: int = 0
    port: int = 0
    received: list[tuple[Stage, bytes]] = field(default_factory=list)
    sent: int = 0
    open: set[asyncio.Task[Any]] = field(default_factory=set)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.open.add(task)
        task.add_done_callback(self.open.discard)
        try:
            request = await _read_request(reader)
            stage = stage_of(request)
            self.received.append((stage, request))
            wire = Wire(reader, writer, stage, request, self.elsewhere)
            if stage is self.stage:
                try:
                    await self.behave(wire)
                finally:
                    self.sent = max(self.sent, wire.sent)
            else:
                writer.write(json_response(HONEST[stage]))
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def _read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
    return head + await reader.readexactly(length)


@dataclass
class Recorder:
    """Somebody else, who must never hear of us."""

    port: int = 0
    heard: list[bytes] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.heard.append(await reader.read(1 << 16))
        writer.close()


@contextlib.asynccontextmanager
async def listening(
    it: Server | Recorder, host: str = "127.0.0.1", port: int = 0
) -> AsyncIterator[int]:
    server = await asyncio.start_server(it.serve, host, port)
    it.port = server.sockets[0].getsockname()[1]
    async with server:
        yield it.port


class Trail:
    """Every address that this process asks for or connects to, as Python's own audit tells them."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.addresses: list[Any] = []
        self._watching = False
        sys.addaudithook(self._note)

    def _note(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self._watching or not event.startswith("socket."):
            return
        if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
            # Our own kernel is asked who listens, by no address; and a connection that is there needs none.
            if arguments[0].family != AF_NETLINK and arguments[1] is not None:
                self.addresses.append(arguments[1])
        elif event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.getnameinfo"):
            self.names.append(event)

    def assert_only(self, port: int) -> None:
        """Nobody else was connected to, and no name was looked up."""
        assert self.names == []
        assert set(self.addresses) == {("127.0.0.1", port)}, self.addresses

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        self.names.clear()
        self.addresses.clear()
        self._watching = True
        try:
            yield
        finally:
            self._watching = False


TRAIL = Trail()  # an audit hook cannot be removed
