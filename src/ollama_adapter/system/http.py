"""HTTP/1.1 over a loopback socket, one connection per request.

The connection is ours so that nothing stands between a prompt and 127.0.0.1: no resolver, no proxy, no
redirect, no environment. A read is stamped when it arrives and its body goes to a sink at once, in the
loop's own callback. `Exchange.close` is the abort: the daemon knows no other.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import httptools

from ollama_adapter.config import LOOPBACK
from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    ProtocolError,
    ReadTimeout,
)
from ollama_adapter.system.clock import monotonic_ns
from ollama_adapter.system.dialing import Dial

READ_BYTES: Final = 64 << 10  # asyncio's own 256 KiB are fresh pages of the kernel, for every read
MAX_HEAD_BYTES: Final = 64 << 10
ENDLESS_HEAD: Final = f"the daemon sent over {MAX_HEAD_BYTES >> 10} KiB of headers"

Sink = Callable[[int, bytes, int], None]
"""Takes the status, body bytes, and the time in nanoseconds at which they arrived.

An AdapterError that it raises ends the exchange, and `Exchange.ended` raises it.
"""


def encode_request(
    method: str, path: str, body: bytes = b"", kind: str = "application/json"
) -> bytes:
    """The bytes of a request that asks for the connection to end with the answer."""
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nConnection: close\r\n"
        f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return head.encode("ascii") + body


class Exchange:
    """One request, sent at once, and its response. `status` is 0 until the head has come.

    It owns the socket, and the loop calls it when there is something to read: a transport of asyncio's would
    take turns of the loop to make, and time for every token. `ended` completes with True when the
    whole response came, with False when the connection ended before; a response that is no HTTP, or beyond
    the limits, makes it raise ProtocolError.
    """

    __slots__ = (
        "_chunks",
        "_complete",
        "_connection",
        "_head_bytes",
        "_loop",
        "_parser",
        "_paused",
        "_sink",
        "_unsent",
        "_whole",
        "ended",
        "on_body",
        "status",
    )

    def __init__(self, connection: socket.socket, request: bytes, sink: Sink) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._unsent: memoryview | None = None
        self._sink = sink
        self._chunks: list[bytes] = []
        self._whole = 0  # how many of the chunks belong to a response that has come whole
        self.on_body = self._chunks.append  # httptools' side: one call in C per token
        self._parser = httptools.HttpResponseParser(self)
        self._head_bytes = 0
        self._complete = False
        self._paused = False
        self.status = 0
        self.ended: asyncio.Future[bool] = self._loop.create_future()
        try:
            self._send(memoryview(request))
            self._loop.add_reader(connection.fileno(), self._read)
            if self._unsent:
                self._loop.add_writer(connection.fileno(), self._send_more)
        except BaseException:
            self._drop()
            raise

    def __repr__(self) -> str:
        return f"<Exchange status {self.status}{' closed' if self.ended.done() else ''}>"

    # The socket's side

    def _send(self, request: memoryview) -> None:
        try:
            sent = self._connection.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:  # of a connection that is broken its reader will tell
            sent = len(request)
        self._unsent = request[sent:] or None

    def _send_more(self) -> None:
        """There is room for more of the request, which may be answered before it has gone."""
        if self._unsent:
            self._send(self._unsent)
        if not self._unsent:
            self._loop.remove_writer(self._connection.fileno())

    def _read(self) -> None:
        """One read for each turn of the loop: others have theirs in between."""
        try:
            data = self._connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        try:
            self.receive(data)
        except BaseException:  # a fault of ours, which the loop reports: nothing is read after it
            self._end(False)
            raise

    def receive(self, data: bytes) -> None:
        """What one read gave; nothing where the connection has ended."""
        now_ns = monotonic_ns()
        if self.ended.done():  # it was cancelled, with whoever awaited it
            self._drop()
            return
        if not data:
            # A body without a length ends with its connection; llhttp has no hook for it, and Ollama
            # sends none, so what has not been complete by now is an interruption.
            self._end(False)
            return
        try:
            if self.status:
                self._parser.feed_data(data)
            else:
                self._feed_head(data)
            self._hand_over(now_ns)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._break(now_ns)
        except AdapterError as error:
            self.fail(error)
        if self._complete:
            self._end(True)

    # httptools' side

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if status >= 200 and not self._complete:
            self.status = status

    def on_message_complete(self) -> None:
        if (
            self.status and not self._complete
        ):  # an interim response, such as 100, has no status here
            self._complete = True
            self._whole = len(self._chunks)

    # ours

    def pause(self) -> None:
        """Read no more until `resume`: the kernel's buffers fill, and the daemon waits."""
        if not (self._paused or self.ended.done()):
            self._paused = True
            self._loop.remove_reader(self._connection.fileno())

    def resume(self) -> None:
        if self._paused and not (self.ended.done() or self._loop.is_closed()):
            self._paused = False
            try:
                self._loop.add_reader(self._connection.fileno(), self._read)
            except OSError:  # the system watches no more connections: this one cannot be read
                self._end(False)

    @property
    def paused(self) -> bool:
        return self._paused

    def close(self) -> None:
        """Drop the connection: the daemon sees it before this returns. Idempotent, also in a closed loop."""
        if self._loop.is_closed():
            self._drop()
        else:
            self._end(False)

    def _feed_head(self, data: bytes) -> None:
        """Until the head has come, which must end."""
        self._head_bytes += len(data)
        if self._head_bytes > MAX_HEAD_BYTES and b"\r\n\r\n" not in data[:MAX_HEAD_BYTES]:
            raise ProtocolError(ENDLESS_HEAD)
        self._parser.feed_data(data)
        if not self.status and self._head_bytes > MAX_HEAD_BYTES:
            raise ProtocolError(ENDLESS_HEAD)  # one interim answer after another

    def _hand_over(self, now_ns: int) -> None:
        chunks = self._chunks
        if self._complete:  # what follows a whole response is nobody's
            del chunks[self._whole :]
        if chunks:
            body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
            self._sink(self.status, body, now_ns)

    def _break(self, now_ns: int) -> None:
        """Not HTTP: the body before it is delivered, and the first fault told, however it was cut."""
        error: AdapterError = ProtocolError(
            "the answer is not HTTP", hint="something else listens on the daemon's port"
        )
        try:
            self._hand_over(now_ns)
        except AdapterError as fault:
            error = fault
        else:
            if self._complete:
                return
        self.fail(error)

    def fail(self, error: AdapterError) -> None:
        """End the exchange with `error`, which `ended` raises."""
        if not self.ended.done():
            self.ended.set_exception(error)
            self.ended.exception()  # whoever awaits it is told; nobody need
        self._drop()

    def _end(self, complete: bool) -> None:
        if not self.ended.done():
            self.ended.set_result(complete)
        self._drop()

    def _drop(self) -> None:
        """Idempotent. The loop forgets the descriptor before another connection may have its number."""
        number = self._connection.fileno()
        if number < 0:
            return
        if not self._complete:
            with suppress(OSError):  # the daemon was first
                self._connection.shutdown(socket.SHUT_RDWR)  # a forked process may hold it, too
        if not self._loop.is_closed():
            self._loop.remove_reader(number)
            if self._unsent:
                self._loop.remove_writer(number)
        self._connection.close()


async def open_exchange(dial: Dial, request: bytes, sink: Sink, connect_s: float) -> Exchange:
    """Connect and send `request`. Raises ConnectFailed, ReadTimeout. Cancelling closes the socket."""
    try:
        async with asyncio.timeout(connect_s):
            connection = await dial()
    except TimeoutError as error:
        raise ReadTimeout(f"no connection to the daemon within {connect_s:g} s") from error
    try:
        return Exchange(connection, request, sink)
    except OSError as error:
        raise ConnectFailed(
            f"the connection cannot be watched: {error.strerror or type(error).__name__}"
        ) from error
