"""Small requests, whose answers are read whole and at once."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from ollama_adapter.errors import ConnectionLost, ProtocolError, ReadTimeout
from ollama_adapter.system.dialing import Dial
from ollama_adapter.system.http import open_exchange
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
    """One request, its whole answer. Raises TransportError. Cancelling closes the connection."""
    body = bytearray()

    def collect(_status: int, data: bytes, _now_ns: int) -> None:
        body.extend(data)
        if len(body) > max_bytes:
            raise ProtocolError(f"the daemon sent an answer of over {max_bytes >> 10} KiB")

    exchange = await open_exchange(dial, request, collect, connect_s)
    try:
        async with asyncio.timeout(answer_s):
            complete = await exchange.ended
    except TimeoutError as error:
        raise ReadTimeout(f"no answer from the daemon within {answer_s:g} s") from error
    finally:
        exchange.close()
    if not complete:
        raise ConnectionLost("the daemon closed the connection in the middle of its answer")
    return Response(exchange.status, bytes(body))
