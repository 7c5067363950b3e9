"""Aborts that are confirmed: close the connection, then watch until the runner has come to rest.

Closing is the abort, and comes first, whatever is found out afterwards. Rest is seen from outside, by the
CPU time of the runner's processes; nothing is asked of the daemon. What may be claimed, and which rungs
of the ladder may be climbed where the runner goes on working, core.aborts decides.
"""

from __future__ import annotations

import asyncio
from typing import Final

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import Rung, StreamConfig
from ollama_adapter.core.aborts import Doubt, Rest, Seen, doubt, refusal
from ollama_adapter.core.names import weights_of
from ollama_adapter.core.requests import load_request
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import AbortReceipt, Phase
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.pool import ModelPool
from ollama_adapter.session import Session
from ollama_adapter.stream import SessionRegistry
from ollama_adapter.system.clock import Clock
from ollama_adapter.system.runners import Sample, Sampler, end, listener_pid

SAMPLE_NS: Final = 100_000_000  # the kernel counts CPU time in hundredths of a second


class Aborter:
    """Gives the receipts of one adapter."""

    def __init__(
        self,
        limits: StreamConfig,
        sessions: SessionRegistry,
        daemon: OllamaDaemon,
        client: OllamaClient,
        pool: ModelPool,
        clock: Clock,
    ) -> None:
        self.limits = limits
        self.sessions = sessions
        self.daemon = daemon
        self.client = client
        self.pool = pool
        self.clock = clock
        self.sampler = Sampler(clock)

    async def abort(self, session_id: str) -> AbortReceipt:
        """Raises SessionNotFound. Cancelling is safe: the connection is closed before the first wait."""
        called_ns = self.clock.now_ns()
        session = self.sessions.known(session_id)
        if session is None:
            return AbortReceipt(session_id, Phase.ENDED, reason=Doubt.ENDED.value)
        phase = self.sessions.phase(session)
        tokens = session.statistics.tokens
        await self.sessions.stop(session_id)
        close_ms = (self.clock.now_ns() - called_ns) / 1e6
        watch = _Watch(self, session, called_ns)
        if phase is Phase.ENDED:
            watch.reason = Doubt.ENDED.value
        elif phase is Phase.NOT_STARTED or (phase is Phase.LOADING and not self.daemon.origin):
            watch.idle_ms = 0.0  # no runner has ever heard of it
        else:
            await watch.until_idle()
        return AbortReceipt(
            session_id,
            phase,
            close_ms=close_ms,
            events_after=session.statistics.tokens - tokens,
            idle_ms=watch.idle_ms,
            confirmed=watch.idle_ms is not None,
            reason=watch.reason,
            rungs=tuple(watch.rungs),
        )


class _Watch:
    """On the runner of one session that has been aborted."""

    def __init__(self, owner: Aborter, session: Session, called_ns: int) -> None:
        self._owner = owner
        self._model = session.request.model
        self._weights = weights_of(owner.pool.known(self._model))
        self._called_ns = called_ns
        self._ours = owner.daemon.pid is not None
        self._pid: int | None = None
        self._rest = Rest()
        self._sample: Sample | None = None
        self._found = False
        self._identified = False
        self.idle_ms: float | None = None
        self.reason = ""
        self.rungs: list[str] = []

    async def until_idle(self) -> None:
        """Until the runner is at rest, that cannot be told, or there is no further rung."""
        await self._find_daemon()
        doubtful = await self._watch()
        refused: list[str] = []
        for rung in self._owner.limits.abort_ladder:
            if self._rest.still:
                break
            if why := refusal(rung, self._seen()):
                refused.append(why)
                continue
            self.rungs.append(rung.value)
            await self._climb(rung)
            doubtful = await self._watch()
        if self._rest.still:
            self.idle_ms = max(0.0, (self._rest.since_ns - self._called_ns) / 1e6)
            return
        working = f"its runner still worked after {self._owner.limits.abort_s:g} s"
        self.reason = "; ".join([doubtful.value if doubtful else working, *refused])

    async def _find_daemon(self) -> None:
        daemon = self._owner.daemon
        self._pid = daemon.pid
        if daemon.origin == ADOPTED:
            loop = asyncio.get_running_loop()
            self._pid = await loop.run_in_executor(None, listener_pid, daemon.port)

    async def _watch(self) -> Doubt | None:
        """Until rest or the limit. The reason why rest cannot be told, if there is one."""
        clock = self._owner.clock
        deadline_ns = clock.now_ns() + int(self._owner.limits.abort_s * 1e9)
        while True:
            self._sample = sample = await self._look()
            doubtful = doubt(self._seen())
            if doubtful is not None or sample is None:
                return doubtful
            self._rest.sample(sample.taken_ns, sample.spent, runnable=sample.runnable)
            now_ns = clock.now_ns()
            if self._rest.still or now_ns >= deadline_ns:
                return None
            await clock.sleep_until_ns(min(now_ns + SAMPLE_NS, deadline_ns))

    async def _look(self) -> Sample | None:
        sample = await self._owner.sampler.sample(self._pid, self._weights)
        if sample is not None and self._identified and not sample.identified:
            return Sample(sample.taken_ns, {}, False, True)  # it has gone; those left are others'
        self._identified = sample is not None and sample.identified
        return sample

    def _seen(self) -> Seen:
        sample = self._sample
        work = self._owner.pool.at_work()
        runners = 0 if sample is None else len(sample.spent)
        self._found = self._found or runners > 0
        return Seen(
            ours=self._ours,
            visible=sample is not None,
            runners=runners,
            found=self._found,
            identified=sample is not None and sample.identified,
            sharing=sum(count for key, count in work.items() if self._shares(key)),
            others=work.total(),
        )

    def _shares(self, key: str) -> bool:
        """A model may have several names, and one runner for all of them."""
        if key == self._model.lower():
            return True
        return bool(self._weights) and weights_of(self._owner.pool.known(key)) == self._weights

    async def _climb(self, rung: Rung) -> None:
        owner = self._owner
        owner.pool.used(self._model, {}, 0)  # whatever comes of it, the next request has to load
        if rung is Rung.RESTART:
            assert self._sample is not None, "without a sample there is a doubt"
            end(self._sample)
            return
        try:
            async with asyncio.timeout(owner.limits.abort_s):
                await owner.client.load(load_request(self._model, 0, {}), owner.limits.abort_s)
        except (AdapterError, TimeoutError):
            pass  # the watch tells whether it helped
