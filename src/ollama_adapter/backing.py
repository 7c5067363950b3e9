"""What a generation needs before its first byte: a daemon, its model in memory, a connection.

And what there is when no daemon can be had: the answers in memory.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from ollama_adapter.client import OllamaClient
from ollama_adapter.core.cache import Cached
from ollama_adapter.core.lifecycle import DaemonState
from ollama_adapter.core.records import ChatRecord, GenerateRecord
from ollama_adapter.core.requests import Request
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.errors import ConnectFailed, ConnectionLost, InvalidRequest
from ollama_adapter.events import LoadProgress, Statistics
from ollama_adapter.memory import Draft, Memory
from ollama_adapter.pool import Lease, ModelPool
from ollama_adapter.system.http import Exchange, Sink

T = TypeVar("T")


class Hold:
    """What one session holds of the pool: the model that serves it, which stays in memory meanwhile.

    `request` is what is to be sent: as it was asked, but for what the pool has changed of it.
    """

    __slots__ = ("lease", "lost", "progress", "request", "statistics")

    def __init__(self, request: Request, statistics: Statistics) -> None:
        self.request = request
        self.statistics = statistics
        self.lease: Lease | None = None
        self.progress: LoadProgress | None = None
        self.lost = False  # the model was held, and the daemon had it no more

    def __repr__(self) -> str:
        return f"<Hold {self.lease or 'on nothing yet'}>"

    @property
    def substituted(self) -> bool:
        return self.statistics.substitution is not None

    def take(self, lease: Lease) -> None:
        """Hold on to it, and account for it: of the first token it tells only before that has come."""
        self.lease = lease
        self.request = lease.request
        statistics = self.statistics
        if not statistics.tokens:
            statistics.warm = lease.warm
            statistics.queued_ms += lease.queued_ms
            statistics.notes = lease.notes
            statistics.vram_share = lease.vram_share
        if lease.substitution is not None:
            statistics.substitution = lease.substitution
            statistics.served_by = lease.model

    def release(self) -> None:
        """Let the model go. Idempotent."""
        if self.lease is not None:
            self.lease.release()

    def note(self, progress: LoadProgress) -> None:
        """How far the model is."""
        self.progress = progress


class Backing:
    """The adapter's daemon, client and pool, as one session sees them. Cancelling is always safe."""

    def __init__(
        self, daemon: OllamaDaemon, client: OllamaClient, pool: ModelPool, memory: Memory
    ) -> None:
        self._daemon = daemon
        self._client = client
        self._pool = pool
        self._memory = memory

    def __repr__(self) -> str:
        return f"<Backing {self._daemon!r}>"

    @property
    def embedded(self) -> bool:
        """The daemon of this moment is our own, which goes on from token ids."""
        return self._daemon.embedded

    @property
    def ready(self) -> bool:
        """There is a daemon that answers, as far as we know."""
        return self._daemon.state is DaemonState.READY

    @property
    def renders(self) -> bool:
        """It shows the prompt as the model gets it."""
        return "_debug_render_only" not in self._daemon.missing

    async def ensure_running(self) -> None:
        """Until a daemon is ready. Raises DaemonError."""
        await self._daemon.ensure_running()

    async def load(self, hold: Hold) -> None:
        """A daemon with the model in memory; another model only for an answer that has not begun."""
        await self.insist(lambda: self._load_once(hold))

    async def insist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Once more where the connection was lost; each attempt has to make sure of a daemon first."""
        try:
            return await attempt()
        except (ConnectFailed, ConnectionLost):
            await self._daemon.check()  # it may have died since we last heard of it, or just now
            return await attempt()

    def is_lost(self, hold: Hold) -> bool:
        """The daemon has no such model, though it was in memory: it is let go, and looked for anew, once."""
        if hold.lease is None or hold.lost or hold.statistics.tokens:
            return False
        hold.release()
        hold.lease, hold.lost = None, True
        self._pool.renewed(hold.request.model)
        return True

    async def _load_once(self, hold: Hold) -> None:
        await self.ensure_running()
        if hold.lease is not None and hold.lease.valid:
            return
        hold.release()
        fixed = hold.substituted or hold.statistics.tokens > 0
        lease = await self._pool.acquire(
            hold.request, substitute=False if fixed else None, on_progress=hold.note
        )
        hold.take(lease)

    async def open(self, hold: Hold, request: Request, sink: Sink) -> Exchange:
        """A connection, on which `request` has been sent to the model that is held."""
        try:
            return await self._send(hold, request, sink)
        except (ConnectFailed, ConnectionLost):
            await self._daemon.check()
            await self.load(hold)
            return await self._send(hold, request, sink)

    async def _send(self, hold: Hold, request: Request, sink: Sink) -> Exchange:
        hold.statistics.degraded = request.ungranted(self._daemon.missing)
        if request.renders and "_debug_render_only" in hold.statistics.degraded:
            raise InvalidRequest(
                "this Ollama is too old for _debug_render_only, and would answer instead",
                hint="update Ollama",
            )
        return await self._client.generate(request, sink)

    async def check(self) -> None:
        """A stream broke: find out whether the daemon did, so that another one is started."""
        await self._daemon.check()

    async def answer(self, request: Request, limit_s: float) -> GenerateRecord | ChatRecord:
        """The answer to a small request of our own, in one piece."""
        return await self._client.ask(request, limit_s)

    def draft(self, *, private: bool) -> Draft:
        """Where an answer is kept until it has ended."""
        return self._memory.draft(private=private)

    def remember(self, request: Request, parts: Sequence[bytes], statistics: Statistics) -> None:
        """An answer has ended, its draft whole: it may be given again when no daemon can be had."""
        self._memory.keep(self._pool.digest(request.model), request, parts, statistics)

    def recall(self, request: Request) -> Cached | None:
        """The answer to exactly this request, from the model as it was last seen."""
        return self._memory.find(self._pool.digest(request.model), request)
