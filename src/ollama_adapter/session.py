"""One generation, from request to end: its pump, its abort, its account.

Bytes become events in the callback that reads them, with no task in between; the pump is the task that
opens the connection, waits for its end and decides what that end means. What is cut goes on where it
can (recovery), and where no daemon can be had, the answer to an equal request is given from memory.
A connection is one session's alone, and closing it is the abort.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from ollama_adapter.attempt import Attempt
from ollama_adapter.backing import Backing, Hold
from ollama_adapter.config import StreamConfig
from ollama_adapter.core.diagnosis import Stall
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.generation import Generation
from ollama_adapter.core.guarantees import Tally
from ollama_adapter.core.interruptions import ended_early, too_late
from ollama_adapter.core.patience import Patience
from ollama_adapter.core.records import ChatRecord, GenerateRecord, context_length
from ollama_adapter.core.requests import Request
from ollama_adapter.core.transcript import Transcript
from ollama_adapter.decipher import Decipher
from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    DaemonError,
    GenerationError,
    ModelNotFound,
    ProtocolError,
    ReaderGone,
    StreamInterrupted,
)
from ollama_adapter.events import Finish, Source, Statistics, TokenEvent
from ollama_adapter.memory import retell
from ollama_adapter.recovery import Recovery, WayOn
from ollama_adapter.system.channel import Channel
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.http import Exchange
from ollama_adapter.system.scope import is_orphan

Explain = Callable[["Session"], Awaitable[Stall]]  # finds out why it stands still: the adapter's


class Session:
    """The pump of one generation. `run` is its task's coroutine; `abort` may come at any moment."""

    def __init__(
        self,
        request: Request,
        statistics: Statistics,
        mapper: EUMapper,
        backing: Backing,
        limits: StreamConfig,
        tally: Tally,
        clock: Clock,
        observer: Decipher | None = None,
        explain: Explain | None = None,
        private: bool = False,
    ) -> None:
        self._asked = request
        self.hold = Hold(request, statistics)
        self.statistics = statistics
        self.channel: Channel[TokenEvent] = Channel(limits.buffer_tokens, limits.buffer_bytes)
        self._mapper = mapper
        self._backing = backing
        self._limits = limits
        self._tally = tally
        self._clock = clock
        self._observer = observer
        self._explain = explain
        self._attempt: Attempt | None = None
        self._task: asyncio.Task[None] | None = None
        self._handling_ns = 0
        self.started_ns = 0
        self._patience = Patience(limits.reader_s, statistics.session_id)
        self._transcript = Transcript()
        self._private = private
        self._draft = backing.draft(private=private)
        self.recovery: Recovery | None = None  # of one that has been cut
        self._generation = Generation(
            statistics,
            mapper,
            clock.epoch_offset_ns,
            truncate=request.truncate,
            wants_logprobs=request.logprobs,
        )
        self.channel.on_full = self._pause
        self.channel.on_drained = self._resume

    def __repr__(self) -> str:
        return f"<Session {self.statistics.session_id} {self.statistics.finish or 'running'}>"

    @property
    def request(self) -> Request:
        """As it is sent: to another model than the one asked for, where that one could not be had."""
        return self.hold.request

    @property
    def ended(self) -> bool:
        return self.statistics.finish is not None

    @property
    def started(self) -> bool:
        return self._task is not None

    @property
    def exchange(self) -> Exchange | None:
        """Its connection of the moment; None before its request has gone out."""
        return self._attempt.exchange if self._attempt is not None else None

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

    @property
    def orphaned(self) -> bool:
        """Its event loop was closed under it."""
        return self._task is not None and is_orphan(self._task)

    def start(self, spawn: Callable[[Session], asyncio.Task[None]]) -> None:
        """Begin to work, unless it has begun or has been stopped before."""
        if self._task is None and not self.ended:
            self._task = spawn(self)
            self.channel.loop = self._task.get_loop()

    async def run(self) -> None:
        """Until the generation has ended, however it ends. An error goes to the reader."""
        self.started_ns = self._clock.now_ns()
        error: AdapterError | None = None
        try:
            if self._observer is not None:
                self._observer.opened(self.statistics.session_id, self._mapper)
            await self._stream()
            if self._draft.parts and not self.hold.substituted:
                self._backing.remember(self._asked, self._draft.parts, self.statistics)
        except AdapterError as failure:
            error = None if self._answer_from_memory(failure) else failure
        except (asyncio.CancelledError, GeneratorExit):  # the latter: its loop was closed under it
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
        if self._attempt is not None:
            self._attempt.close()
        if self.orphaned:
            self.hold.release()
        elif self._task is not None:
            self._task.cancel()
        self.channel.discard()
        self.channel.end()

    async def stop(self) -> None:
        """Abort, and wait until the connection is closed. Cancelling is safe."""
        self.abort()
        if self._task is not None and not self.orphaned:
            await asyncio.wait([self._task])

    # The stream

    async def _stream(self) -> None:
        """Until an answer has ended well, however often it had to go on."""
        way_on: WayOn | None = None
        while way_on is None or not way_on.joint.over:
            try:
                await self._run_attempt(way_on)
                return
            except AdapterError as error:
                if isinstance(error, ModelNotFound) and self._backing.is_lost(self.hold):
                    continue  # deleted since it was loaded
                final = way_on is None or isinstance(error, (ReaderGone, ProtocolError))
                if final and not isinstance(error, StreamInterrupted):
                    raise
                way_on = await self._go_on(error)
        self._generation.end_at_limit(self._clock.now_ns())

    async def _run_attempt(self, way_on: WayOn | None) -> None:
        await self._backing.load(self.hold)
        if self.hold.substituted and self._generation.source is Source.LIVE:
            self._generation.source = Source.SUBSTITUTED
        request, limits = way_on.request if way_on else self.request, self._limits
        first_s = min(limits.first_token_s, way_on.limit_s if way_on else limits.first_token_s)
        self._attempt = attempt = Attempt(request, self, self._clock)
        try:
            exchange = await self._backing.open(self.hold, request, attempt.receive)
            await attempt.run(
                exchange,
                full=self.channel.full,
                first_s=first_s,
                next_s=limits.next_token_s,
                reader_s=limits.reader_s,
            )
            complete = attempt.finish(exchange)
        finally:
            attempt.close()
        if self._generation.ending(complete=complete) is None:
            done, model = self._generation.done, self.request.model
            raise ended_early(self.statistics, model, complete=complete, done=done)

    async def _go_on(self, cut: AdapterError) -> WayOn:
        if self._observer is not None:
            self._observer.interrupted(self.statistics.session_id)
        if self.recovery is None:
            self.recovery = Recovery(self.hold, self._backing, self._limits, self._clock)
        way_on = await self.recovery.way_on(cut, self._transcript)
        self._generation.go_on(way_on.joint)
        return way_on

    def check_reader(self, now_ns: int) -> None:
        """Raises ReaderGone."""
        self._patience.check(len(self.channel), now_ns)

    async def too_late(self, what: str, limit_s: float) -> AdapterError:
        """The error of a silence, which says why it stands still."""
        cause = f": {await self._explain(self)}" if self._explain is not None else ""
        return too_late(self.statistics, what, limit_s, cause)

    def take(self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int) -> None:
        """In the loop's callback, once per read."""
        generation = self._generation
        events = generation.receive(records, now_ns)
        if generation.done and records and self._attempt is not None:
            tokens = context_length(records[-1], self._attempt.context_tokens)
            generation.check_truncation(tokens)
        if events:
            self._transcript.add(events)
            self._draft.add(events)
            if self._observer is not None:
                self._observer.ingest_read(events)
            self._handling_ns = max(self._handling_ns, self._clock.now_ns() - now_ns)
            self.channel.deliver(events, _text_size)
        if generation.error is not None:
            raise generation.error

    def _answer_from_memory(self, failure: AdapterError) -> bool:
        """Where no daemon can be had: the answer that an equal request got, if there is one."""
        unbegun = not self.statistics.tokens and isinstance(failure, (DaemonError, ConnectFailed))
        if self._private or not unbegun or (found := self._backing.recall(self._asked)) is None:
            return False
        for event in retell(found, self.statistics, self._clock):
            self.channel.put(event, len(event.token))
        return True

    def _pause(self) -> None:
        if self._attempt is not None:
            self._attempt.pause()

    def _resume(self) -> None:
        self._patience.reset()
        if self._attempt is not None:
            self._attempt.resume()

    def _finish(self, error: AdapterError | None) -> None:
        self.hold.release()
        self._draft.drop()
        statistics = self.statistics
        self._generation.close(self._clock.now_ns())
        if self._generation.first_ns:
            statistics.ttft_ms = (self._generation.first_ns - self.started_ns) / 1e6
        if error is not None:
            if isinstance(error, StreamInterrupted):
                error.statistics = statistics
            statistics.error = type(error).__name__
            statistics.finish = Finish.FAILED
        elif statistics.finish is None:  # cancelled: the scope is closing
            statistics.finish = Finish.ABORTED
        statistics.guarantees = self._tally.judge(statistics, self._handling_ns)
        if self._observer is not None:
            self._observer.ended(statistics.session_id)
        self.channel.end(error)


def _text_size(events: Sequence[TokenEvent]) -> int:
    return sum([len(each.token) for each in events])
