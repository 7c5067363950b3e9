"""What a generation needs before its first byte: a daemon, its model in memory, a connection.

And what there is when no daemon can be had: the answers in memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from ollama_adapter.client import OllamaClient
from ollama_adapter.core.cache import Cached
from ollama_adapter.core.lifecycle import DaemonState
from ollama_adapter.core.records import ChatRecord, GenerateRecord
from ollama_adapter.core.requests import Request
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.errors import ConnectFailed, ConnectionLost, InvalidRequest
from ollama_adapter.events import Statistics, TokenEvent
from ollama_adapter.memory import Draft, Memory
from ollama_adapter.pool import ModelPool
from ollama_adapter.system.http import Exchange, Sink


class Backing:
    """The adapter's daemon, client and pool, as one session sees them. Cancelling is always safe."""

    def __init__(
        self, daemon: OllamaDaemon, client: OllamaClient, pool: ModelPool, memory: Memory
    ) -> None:
        self._daemon = daemon
        self._client = client
        self._pool = pool
        self._memory = memory
        self._starts_seen = 0

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
        if self._daemon.starts != self._starts_seen:
            self._starts_seen = self._daemon.starts
            self._pool.forget()

    async def open(self, request: Request, statistics: Statistics, sink: Sink) -> Exchange:
        """Daemon, model, connection: what every generation needs, in that order."""
        try:
            return await self._open_once(request, statistics, sink)
        except (ConnectFailed, ConnectionLost):
            await self._daemon.check()  # it may have died since we last heard of it, or just now
            return await self._open_once(request, statistics, sink)

    async def check(self) -> None:
        """A stream broke: find out whether the daemon did, so that another one is started."""
        await self._daemon.check()

    async def answer(self, request: Request, limit_s: float) -> GenerateRecord | ChatRecord:
        """The answer to a small request of our own, in one piece."""
        return await self._client.ask(request, limit_s)

    async def load(self, request: Request) -> bool:
        """A daemon with the request's model in memory; whether it was there already."""
        await self.ensure_running()
        return await self._pool.ensure_loaded(
            request.model, keep_alive=request.keep_alive, reloading=request.reloading
        )

    def draft(self, *, private: bool) -> Draft:
        """Where an answer is kept until it has ended."""
        return self._memory.draft(private=private)

    def remember(
        self, request: Request, events: Sequence[TokenEvent], statistics: Statistics
    ) -> None:
        """An answer has ended: it may be given again when no daemon can be had."""
        self._memory.keep(self._pool.digest(request.model), request, events, statistics)

    def recall(self, request: Request) -> Cached | None:
        """The answer to exactly this request, from the model as it was last seen."""
        return self._memory.find(self._pool.digest(request.model), request)

    async def _open_once(self, request: Request, statistics: Statistics, sink: Sink) -> Exchange:
        warm = await self.load(request)
        if not statistics.tokens:  # afterwards it says nothing of the first token
            statistics.warm = warm
        statistics.degraded = request.ungranted(self._daemon.missing)
        if request.renders and "_debug_render_only" in statistics.degraded:
            raise InvalidRequest(
                "this Ollama is too old for _debug_render_only, and would answer instead",
                hint="update Ollama",
            )
        exchange = await self._client.generate(request, sink)
        self._pool.used(request.model, request.reloading, request.keep_alive)
        return exchange
