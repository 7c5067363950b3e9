"""One generation, from request to end: its pump, its abort, its account.

Bytes become events in the protocol's callback, with no task in between; the pump is the task that
opens the connection, waits for its end and decides what that end means. Only `done: true` from the
daemon is success. The connection is this session's alone, and closing it is the abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Protocol

from ollama_adapter.config import StreamConfig, Tier
from ollama_adapter.core.diagnosis import Stall
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.failures import response_error
from ollama_adapter.core.generation import Generation
from ollama_adapter.core.guarantees import judge
from ollama_adapter.core.records import (
    ChatRecord,
    GenerateRecord,
    RecordDecoder,
    context_length,
)
from ollama_adapter.core.requests import Request
from ollama_adapter.errors import (
    AdapterError,
    GenerationError,
    ProtocolError,
    ReadTimeout,
    StreamInterrupted,
)
from ollama_adapter.events import Finish, Statistics, TokenEvent
from ollama_adapter.system.channel import Channel
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.http import Exchange, Sink

MAX_ERROR_BYTES: Final = 1 << 20

Open = Callable[["Session", Sink], Awaitable[Exchange]]
"""Ensures daemon and model, and sends the session's request. The adapter's."""
Explain = Callable[["Session"], Awaitable[Stall]]
"""Finds out why the session stands still. The adapter's."""


class Observer(Protocol):
    """Somebody who watches sessions without ever holding them up: the decipher."""

    def opened(self, session_id: str, mapper: EUMapper) -> None: ...

    def ingest_read(self, events: Sequence[TokenEvent]) -> None: ...

    def ended(self, session_id: str) -> None: ...


class Session:
    """The pump of one generation. `run` is its task's coroutine; `abort` may come at any moment."""

    def __init__(
        self,
        request: Request,
        statistics: Statistics,
        mapper: EUMapper,
        open_: Open,
        limits: StreamConfig,
        tier: Tier,
        clock: Clock,
        observer: Observer | None = None,
        explain: Explain | None = None,
    ) -> None:
        self.request = request
        self.statistics = statistics
        self.channel: Channel[TokenEvent] = Channel(limits.buffer_tokens, limits.buffer_bytes)
        self._mapper = mapper
        self._open = open_
        self._limits = limits
        self._tier = tier
        self._clock = clock
        self._observer = observer
        self._explain = explain
        self._exchange: Exchange | None = None
        self._task: asyncio.Task[None] | None = None
        self._error_body = bytearray()
        self._handling_ns = 0
        self._started_ns = 0
        self._resumed_ns = 0
        self._arrived: list[TokenEvent] = []  # the tokens of the read that is being taken
        self._decoder: RecordDecoder[GenerateRecord] | RecordDecoder[ChatRecord] = (
            RecordDecoder(GenerateRecord)
            if request.path == "/api/generate"
            else RecordDecoder(ChatRecord)
        )
        self._generation = Generation(
            statistics,
            mapper,
            clock.epoch_offset_ns,
            self._arrived.append,
            truncate=request.truncate,
            wants_logprobs=request.logprobs,
        )
        self.channel.on_full = self._pause
        self.channel.on_drained = self._resume

    def __repr__(self) -> str:
        finish = self.statistics.finish
        return f"<Session {self.statistics.session_id} {finish or 'running'}>"

    @property
    def ended(self) -> bool:
        return self.statistics.finish is not None

    @property
    def started(self) -> bool:
        return self._task is not None

    def delivered(self, event: TokenEvent) -> None:
        """A reader that waited for it has it now."""
        self._handling_ns = max(self._handling_ns, self._clock.now_ns() - event.arrival_ns)

    @property
    def paused(self) -> bool:
        """Its reader does not keep up, and the daemon is made to wait."""
        return self.channel.full

    @property
    def last_token_ns(self) -> int:
        """When its latest token arrived; 0 before the first."""
        return self._generation.last_ns

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """Where it runs; None before it starts."""
        return self._task.get_loop() if self._task is not None else None

    def start(self, spawn: Callable[[Session], asyncio.Task[None]]) -> None:
        """Begin to work, unless it has begun or has been stopped before."""
        if self._task is None and not self.ended:
            self._task = spawn(self)

    async def run(self) -> None:
        """Until the generation has ended, however it ends. An error goes to the reader."""
        self._started_ns = self._clock.now_ns()
        error: AdapterError | None = None
        try:
            if self._observer is not None:
                self._observer.opened(self.statistics.session_id, self._mapper)
            await self._stream()
        except AdapterError as failure:
            error = failure
        except asyncio.CancelledError:
            raise
        except BaseException as crash:  # a fault of ours: its reader must not take it for an end
            error = GenerationError(f"the session broke ({type(crash).__name__})")
            raise
        finally:
            self._finish(error)

    def abort(self) -> None:
        """Drop the connection and what is buffered; the iterator ends quietly. Idempotent."""
        if not self.ended:
            self.statistics.finish = Finish.ABORTED
        if self._exchange is not None:
            self._exchange.close()
        if self._task is not None:
            self._task.cancel()
        self.channel.discard()
        self.channel.end()

    async def stop(self) -> None:
        """Abort, and wait until the connection is closed. Cancelling is safe."""
        self.abort()
        if self._task is not None:
            await asyncio.wait([self._task])

    # The stream

    async def _stream(self) -> None:
        self._exchange = exchange = await self._open(self, self._receive)
        if self.channel.full:
            exchange.pause()
        await self._until_ended(exchange)
        if exchange.status not in (0, 200):
            body = bytes(self._error_body)
            raise response_error(exchange.status, body, self.request.model, self.request.body)
        self._take(self._decoder.finish(), self._clock.now_ns())
        failure = self._decoder.failure or self._generation.error
        if failure is not None:
            raise failure
        complete = exchange.ended.result()
        if self._generation.close(self._clock.now_ns(), complete=complete) is None:
            raise self._interrupted(complete)

    async def _until_ended(self, exchange: Exchange) -> None:
        """Wait, with a timer per silence and none per token. Raises ReadTimeout, ProtocolError."""
        waiting_since = self._clock.now_ns()
        while not exchange.ended.done():
            if exchange.paused:  # the reader holds us up, not the daemon
                waiting_since = self._clock.now_ns()
            since = max(waiting_since, self._generation.last_ns, self._resumed_ns)
            first = self._generation.last_ns == 0
            limit_s = self._limits.first_token_s if first else self._limits.next_token_s
            remaining = since / 1e9 + limit_s - self._clock.now_ns() / 1e9
            if remaining <= 0:
                raise await self._too_late("first" if first else "next", limit_s)
            # The first token may come meanwhile, and then the other limit counts.
            await asyncio.wait([exchange.ended], timeout=min(remaining, self._limits.next_token_s))
        exchange.ended.result()

    async def _too_late(self, what: str, limit_s: float) -> AdapterError:
        cause = f": {await self._explain(self)}" if self._explain is not None else ""
        return ReadTimeout(
            f"no {what} token within {limit_s:g} s{cause}",
            hint=f"stream.{what}_token_s is the limit, and can be raised",
        )

    def _receive(self, status: int, data: bytes, now_ns: int) -> None:
        """The sink: in the protocol's callback, once per read."""
        if status != 200:
            if len(self._error_body) < MAX_ERROR_BYTES:
                self._error_body += data
            return
        self._take(self._decoder.feed(data), now_ns)
        self.channel.flush()
        spent = self._clock.now_ns() - now_ns
        if spent > self._handling_ns:
            self._handling_ns = spent
        if self._decoder.failure is not None:
            raise self._decoder.failure
        if self._generation.error is not None:
            raise self._generation.error

    def _take(self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int) -> None:
        for record in records:
            self._generation.receive(record, now_ns)
            if record.done:
                tokens = context_length(record, self._decoder.context_tokens)
                self._generation.check_truncation(tokens)
        arrived = self._arrived
        if arrived:
            for event in arrived:
                self.channel.put(event, len(event.token))
            if self._observer is not None:
                self._observer.ingest_read(arrived)
            arrived.clear()

    def _pause(self) -> None:
        if self._exchange is not None:
            self._exchange.pause()

    def _resume(self) -> None:
        self._resumed_ns = self._clock.now_ns()
        if self._exchange is not None:
            self._exchange.resume()

    # The end

    def _interrupted(self, complete: bool) -> AdapterError:
        tokens = self.statistics.tokens
        if not tokens and complete and not self._generation.done:
            return ProtocolError(
                "the daemon's answer holds no record",
                hint="something else may listen on the daemon's port",
            )
        how = "ended without its last record" if complete else "was cut"
        return StreamInterrupted(
            f"the answer of {self.request.model} {how} after {tokens} tokens",
            session_id=self.statistics.session_id,
            tokens=tokens,
            hint="what came before is whole; ask again for the rest",
        )

    def _finish(self, error: AdapterError | None) -> None:
        if self._exchange is not None:
            self._exchange.close()
        now_ns = self._clock.now_ns()
        statistics = self.statistics
        self._generation.close(now_ns, complete=False)
        if self._generation.first_ns:
            statistics.ttft_ms = (self._generation.first_ns - self._started_ns) / 1e6
        if error is not None:
            statistics.error = type(error).__name__
            statistics.finish = Finish.FAILED
        elif statistics.finish is None:  # cancelled: the scope is closing
            statistics.finish = Finish.ABORTED
        statistics.guarantees = judge(statistics, self._tier, self._handling_ns)
        if self._observer is not None:
            self._observer.ended(statistics.session_id)
        self.channel.end(error)
