"""The conversation with one runner: one request per connection, read as its bytes arrive.

Closing the connection is how a request is cancelled; the runner then frees its slot. A reader that
does not keep up stops the socket, hence the runner.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final, Self

from ollama_adapter.config import LOOPBACK
from ollama_adapter.errors import TransportError
from ollama_adapter.system.dialing import Dial
from ollama_adapter.system.http import Exchange, open_exchange

_HIGH_WATER: Final = 1 << 18
_CONNECT_S: Final = 30.0


class RunnerGone(Exception):
    """The runner ended before its answer did."""


class Reply:
    """An answer under way. `status` is known once `open_reply` has returned it."""

    def __init__(self) -> None:
        self._exchange: Exchange | None = None
        self._buffer = bytearray()
        self._waiter: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    @property
    def status(self) -> int:
        return self._exchange.status if self._exchange is not None else 0

    def close(self) -> None:
        """Drop the connection: the runner stops. Idempotent."""
        if self._exchange is not None:
            self._exchange.close()

    async def begin(self, dial: Dial, request: bytes) -> None:
        """Send the request, and wait for the first bytes of an answer."""
        try:
            self._exchange = await open_exchange(dial, request, self._receive, _CONNECT_S)
        except TransportError:
            raise RunnerGone from None
        self._exchange.ended.add_done_callback(self._wake)
        await self._news()

    def _receive(self, _status: int, data: bytes, _now_ns: int) -> None:
        self._buffer += data
        if len(self._buffer) > _HIGH_WATER and self._exchange is not None:
            self._exchange.pause()
        self._wake()

    def _wake(self, _: object = None) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _news(self) -> None:
        """Return when there are bytes, or the whole answer has come; raises RunnerGone."""
        assert self._exchange is not None
        while not self._buffer and not self._exchange.ended.done():
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        if not self._buffer and (
            self._exchange.ended.exception() or not self._exchange.ended.result()
        ):
            raise RunnerGone

    async def take(self) -> bytes:
        """The bytes that have arrived, at least one; b"" at the end. Raises RunnerGone."""
        await self._news()
        data = bytes(self._buffer)
        self._buffer.clear()
        if self._exchange is not None:
            self._exchange.resume()
        return data

    async def read(self) -> bytes:
        """The rest of the answer."""
        parts = []
        while data := await self.take():
            parts.append(data)
        return b"".join(parts)

    async def events(self) -> AsyncIterator[bytes]:
        """The data of each server-sent event, as it comes."""
        rest = b""
        while data := await self.take():
            *whole, rest = (rest + data).split(b"\n\n")
            for event in whole:
                if event.startswith(b"data: "):
                    yield event[6:]


async def open_reply(dial: Dial, key: str, path: str, body: bytes) -> Reply:
    """Send a request to the runner that `dial` reaches, and wait for the beginning of its answer.

    Cancelling is safe: the connection is closed. Raises RunnerGone.
    """
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {LOOPBACK}\r\nAuthorization: Bearer {key}\r\n"
        f"Connection: close\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    reply = Reply()
    try:
        await reply.begin(dial, head.encode("ascii") + body)
    except BaseException:
        reply.close()
        raise
    return reply
