"""Small requests, whose answers are read whole and at once."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

import msgspec

from ollama_adapter.errors import ConnectionLost, ProtocolError, ReadTimeout
from ollama_adapter.system.dialing import Dial
from ollama_adapter.system.http import READ_BYTES, Exchange, attach, connect
from ollama_adapter.veiled import Veiled

MAX_BODY_BYTES: Final = 16 << 20  # a list of models, or all about one


class Response(Veiled, msgspec.Struct, frozen=True):
    """A whole response."""

    status: int
    body: bytes


async def fetch(
    dial: Dial,
    request: bytes,
    *,
    connect_s: float,
    answer_s: float | None,
    max_bytes: int = MAX_BODY_BYTES,
) -> Response:
    """One request, its whole answer. Raises TransportError. Cancelling closes the connection.

    One that goes at once is read without a transport, which would take longer to make than the answer takes
    to come; what does not may be answered before it has gone.
    """
    body = bytearray()

    def collect(_status: int, data: bytes, _now_ns: int) -> None:
        body.extend(data)
        if len(body) > max_bytes:
            raise ProtocolError(f"the daemon sent an answer of over {max_bytes >> 10} KiB")

    connection = await connect(dial, connect_s)
    exchange = Exchange(request, collect)
    try:
        async with asyncio.timeout(answer_s):
            if exchange.send(connection):
                await attach(exchange, connection)
                await exchange.ended
            else:
                await _read(exchange, connection)
    except TimeoutError as error:
        raise ReadTimeout(f"no answer from the daemon within {answer_s:g} s") from error
    finally:
        exchange.close()
        connection.close()
    if not exchange.ended.result():
        raise ConnectionLost("the daemon closed the connection in the middle of its answer")
    return Response(exchange.status, bytes(body))


async def _read(exchange: Exchange, connection: socket.socket) -> None:
    """All of the response."""
    loop = asyncio.get_running_loop()
    while not exchange.ended.done():
        try:
            data = await loop.sock_recv(connection, READ_BYTES)
        except OSError:
            data = b""
        if data:
            exchange.data_received(data)
        else:
            exchange.connection_lost(None)
        if len(data) == READ_BYTES:  # more is there already: others have their turn before
            await asyncio.sleep(0)  # noqa: TID251 - a turn, and no time
