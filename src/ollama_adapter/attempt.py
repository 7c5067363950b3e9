"""One connection of a session: its bytes become records, and its silence has limits.

A session has one attempt, and another for every time it goes on. Only `done: true` from the daemon is
success; what an attempt ends with besides is an error, or whether the response came whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Protocol

from ollama_adapter.core.failures import response_error
from ollama_adapter.core.records import ChatRecord, GenerateRecord, RecordDecoder
from ollama_adapter.core.requests import Request
from ollama_adapter.errors import AdapterError
from ollama_adapter.system.clock import Clock, reach
from ollama_adapter.system.http import Exchange

MAX_ERROR_BYTES: Final = 1 << 20


class Owner(Protocol):
    """Whose attempt it is: the session."""

    def take(self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int) -> None:
        """The records of one read, and when it arrived. An AdapterError it raises ends the attempt."""
        ...

    async def too_late(self, what: str, limit_s: float) -> AdapterError:
        """The error of a silence: which token did not come ("first", "next"), and the limit in seconds."""
        ...

    def check_reader(self, now_ns: int) -> None:
        """The reader has us wait. Raises what ends the attempt where it has done so for too long."""
        ...


class Attempt:
    """One request on one connection. `run` is awaited by the session's task; `close` may come any time.

    `receive` is the sink of the connection, and serves before `run` has it. `finish` follows `run`.
    """

    __slots__ = (
        "_clock",
        "_decoder",
        "_error_body",
        "_heard_ns",
        "_owner",
        "_resumed_ns",
        "_waiting",
        "exchange",
        "request",
    )

    def __init__(self, request: Request, owner: Owner, clock: Clock) -> None:
        self.request = request
        self._owner = owner
        self._clock = clock
        self.exchange: Exchange | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._error_body = bytearray()
        self._heard_ns = 0  # when the latest record came
        self._resumed_ns = 0  # when the reader last let it go on
        self._decoder: RecordDecoder[GenerateRecord] | RecordDecoder[ChatRecord] = (
            RecordDecoder(GenerateRecord)
            if request.path == "/api/generate"
            else RecordDecoder(ChatRecord)
        )

    def __repr__(self) -> str:
        return f"<Attempt {self.exchange or 'not connected'}>"

    @property
    def context_tokens(self) -> int:
        """How many tokens the echo of a context held that was dropped as it came."""
        return self._decoder.context_tokens

    async def run(
        self, exchange: Exchange, *, full: bool, first_s: float, next_s: float, reader_s: float
    ) -> None:
        """Wait for the end of the response, with a timer per silence and none per token.

        `full` says whether what came before still waits for its reader, now that there is a connection.
        The limits are in seconds: for the first record, for each one after it, and how often to look
        whether a reader that makes us wait is still there (0: never). Raises AdapterError.
        """
        self.exchange = exchange
        if full:
            exchange.pause()
        loop, wake = asyncio.get_running_loop(), self._wake
        exchange.ended.add_done_callback(wake)
        waiting_since = self._clock.now_ns()
        while not exchange.ended.done():
            if exchange.paused:  # the reader holds us up, not the daemon
                waiting_since = self._clock.now_ns()
                self._owner.check_reader(waiting_since)
            since = max(waiting_since, self._heard_ns, self._resumed_ns)
            first = self._heard_ns == 0
            limit_s = first_s if first else next_s
            remaining = since / 1e9 + limit_s - self._clock.now_ns() / 1e9
            if remaining <= 0 and self._decoder.over:  # but for its end the response is whole
                exchange.close()
                break
            if remaining <= 0:
                raise await self._owner.too_late("first" if first else "next", limit_s)
            # The first token may come meanwhile, and then the other limit counts. With asyncio.wait
            # each stream would take a kilobyte more.
            self._waiting = loop.create_future()
            timer = loop.call_later(min(remaining, next_s, reader_s or next_s), wake)
            try:
                await self._waiting
            finally:
                timer.cancel()

    def finish(self, exchange: Exchange) -> bool:
        """It has ended: whether the response came whole. Raises AdapterError."""
        complete = exchange.ended.result()
        if exchange.status not in (0, 200):
            body = bytes(self._error_body)
            raise response_error(exchange.status, body, self.request.model, self.request.body)
        self._owner.take(self._decoder.finish(), self._clock.now_ns())
        if complete and self._decoder.failure is not None:  # else the cut went through a record
            raise self._decoder.failure
        return complete

    def close(self) -> None:
        """Drop the connection. Idempotent."""
        if self.exchange is not None:
            self.exchange.close()

    def pause(self) -> None:
        """Read no more, so that the daemon waits, until `resume`."""
        if self.exchange is not None:
            self.exchange.pause()

    def resume(self) -> None:
        self._resumed_ns = self._clock.now_ns()
        if self.exchange is not None:
            self.exchange.resume()

    def _wake(self, _ended: asyncio.Future[bool] | None = None) -> None:
        if self._waiting is not None:
            reach(self._waiting)

    def receive(self, status: int, data: bytes, now_ns: int) -> None:
        """The sink: in the loop's callback, once per read."""
        if status != 200:
            if len(self._error_body) < MAX_ERROR_BYTES:
                self._error_body += data
            return
        records = self._decoder.feed(data)
        if records:
            self._heard_ns = now_ns
            self._owner.take(records, now_ns)
        if self._decoder.failure is not None:
            raise self._decoder.failure
