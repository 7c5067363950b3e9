"""The server's end of one connection: requests in, bytes out, and the client's leaving noticed at once.

As in Ollama, whose client leaves while it is served: the service of its request is cancelled. A client
that closes only its sending half has left, too.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
import types
from collections.abc import Generator
from typing import Any, Final, Protocol

from ollama_adapter.embedded.records import go_json
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing.framing import JSON, stream_head, take_request, whole_head
from ollama_adapter.testing.scripted import STREAM_END, ScriptedRequest

_RESET: Final = struct.pack("ii", 1, 0)
_PATIENCE: Final = 500


class House(Protocol):
    """Whoever the connection belongs to."""

    def opened(self, connection: Connection) -> None: ...

    def closed(self, connection: Connection) -> None: ...

    def changed(self) -> None: ...

    async def serve(self, connection: Connection, request: ScriptedRequest) -> None: ...


class Connection(asyncio.Protocol):
    """One connection; its requests are served one after the other."""

    def __init__(self, house: House, scope: TaskScope) -> None:
        self._house = house
        self._scope = scope
        self._transport: asyncio.Transport | None = None
        self._buffer = bytearray()
        self.service: asyncio.Task[None] | None = None
        """Serves the request under way."""
        self._writable = asyncio.Event()
        self._writable.set()
        self._closes = False  # the client wants it closed after this answer
        self.streaming = False
        """The head of a stream is out, and its end is not."""
        self.left = False
        """The client has closed it."""
        self.ended = False
        """We have."""

    # What the transport calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._house.opened(self)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        self._next()

    def eof_received(self) -> bool:
        self._leave()
        return True  # what is under way still says its last word

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        self._writable.set()
        self._house.closed(self)

    def pause_writing(self) -> None:
        self._writable.clear()
        self._house.changed()

    def resume_writing(self) -> None:
        self._writable.set()
        self._house.changed()

    @property
    def held(self) -> bool:
        """The client does not read."""
        return not self._writable.is_set()

    # Requests

    def _next(self) -> None:
        if self.service is not None or self.left or self.ended:
            return
        request = take_request(self._buffer)
        if request is not None:
            self._closes = request.headers.get("connection", "").lower() == "close"
            self.service = self._scope.spawn(self._serve(request), name="pretended service")
            self.service.add_done_callback(self._served)

    async def _serve(self, request: ScriptedRequest) -> None:
        try:
            await self._house.serve(self, request)
        except asyncio.CancelledError:
            if not self.left:
                raise
            if self.streaming:
                self.write(STREAM_END)
        except BaseException:  # a fault of ours: the client shall not wait for it
            self.drop()
            raise

    def _served(self, service: asyncio.Task[None]) -> None:
        self.service = None
        if self.left or self._closes:
            self.close()
        elif not service.cancelled():
            self._next()

    def _leave(self) -> None:
        if self.left:
            return
        self.left = True
        if self.service is not None:
            self.service.cancel()
        else:
            self.close()

    # Answers

    def answer(
        self,
        status: int,
        body: bytes = b"",
        kind: str = JSON,
        *extra: str,
        length: int | None = None,
    ) -> None:
        """A whole answer; `length` is what it claims to have."""
        headers = [*extra, f"Content-Type: {kind}"] if body else [*extra]
        size = len(body) if length is None else length
        self.write(whole_head(status, headers, size, closes=self._closes) + body)

    def value(self, status: int, value: Any) -> None:
        self.answer(status, go_json(value))

    def open_stream(self) -> None:
        """The head of a stream of records. Idempotent."""
        if not self.streaming:
            self.streaming = True
            self.write(stream_head(closes=self._closes))

    def end_stream(self) -> None:
        self.streaming = False
        self.write(STREAM_END)

    async def send(self, data: bytes) -> None:
        """Write, let the others run, and wait while the client does not read."""
        self.write(data)
        await _turn()
        await self._writable.wait()

    async def gone(self) -> None:
        """Until the client leaves, which cancels who waits here."""
        await asyncio.get_running_loop().create_future()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def limit(self, buffer_bytes: int) -> None:
        """Hold no more than about that on its way, here and in the kernel."""
        assert self._transport is not None
        self._transport.set_write_buffer_limits(buffer_bytes)
        peer = self._socket()
        assert peer is not None
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)

    # Ends

    def close(self) -> None:
        """The end, after what was written: a FIN."""
        self.ended = True
        if self._transport is not None:
            self._transport.close()

    async def reset(self) -> None:
        """An RST, after what was written has reached the client's kernel, which it would take back."""
        await self._delivered()
        self.ended = True
        if self._transport is not None and (peer := self._socket()) is not None:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()

    async def _delivered(self) -> None:
        """Nobody tells when a peer has acknowledged; one that does not read is not waited for long."""
        clock, peer = SystemClock(), self._socket()
        for _ in range(_PATIENCE):
            if peer is None or not _unacknowledged(peer):
                return
            await clock.sleep_until_ns(clock.now_ns() + 1_000_000)

    def _socket(self) -> socket.socket | None:
        return None if self._transport is None else self._transport.get_extra_info("socket")

    def drop(self) -> None:
        """The end, at once, as when the process dies."""
        self.ended = True
        if self._transport is not None:
            self._transport.abort()


@types.coroutine
def _turn() -> Generator[None, None, None]:
    """One turn of the loop: an endless answer must not hold it, and answers are written side by side."""
    yield


def _unacknowledged(peer: socket.socket) -> int:
    """How many bytes wait in the kernel for the other side."""
    (count,) = struct.unpack("i", fcntl.ioctl(peer.fileno(), termios.TIOCOUTQ, bytes(4)))
    return int(count)
