"""The contract: OllamaAdapter.

Used bare, it opens its daemon when it is first needed and closes it with `aclose`; inside an
Orchestrator it is opened and closed there. A session is known, and can be stopped, from the call on.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from ollama_adapter.aborting import Aborter
from ollama_adapter.backing import Backing
from ollama_adapter.client import OllamaClient
from ollama_adapter.config import Config
from ollama_adapter.core.diagnosis import Evidence, Stall, diagnose
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.guarantees import Tally
from ollama_adapter.core.lifecycle import DaemonState
from ollama_adapter.core.requests import Request, chat_request, embed_request, generate_request
from ollama_adapter.core.tiers import judge_tier
from ollama_adapter.core.vocabulary import default_keep_alive
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.decipher import Decipher
from ollama_adapter.errors import AdapterError, InvalidRequest
from ollama_adapter.events import (
    AbortReceipt,
    Answer,
    Embeddings,
    Health,
    PullReceipt,
    Statistics,
    Substitution,
)
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.memory import Memory
from ollama_adapter.pool import ModelPool, Surroundings
from ollama_adapter.puller.consent import Confirm, Report
from ollama_adapter.pulling import ModelSource
from ollama_adapter.session import Session
from ollama_adapter.stream import SessionRegistry, TokenStream, collect
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock, SystemClock
from ollama_adapter.system.hardware import hardware
from ollama_adapter.system.runners import Sampler, look
from ollama_adapter.system.scope import TaskScope


class OllamaAdapter:
    """Local models behind four methods: ensure_running, generate_stream, stop_generation, health_check.

    Without a Config the user's settings are read (docs/configuration.md). `async with` ensures the
    daemon and closes everything. Belongs to the event loop that first uses it.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        clock: Clock | None = None,
        decipher: Decipher | None = None,
    ) -> None:
        self.config = settings.load_config() if config is None else config
        self.verdict = judge_tier(hardware(), self.config.pool)
        self._clock = clock or SystemClock()
        self._decipher = decipher
        self._profile = profile_for(self.config.energy.profile, self.config.energy.tier)
        self._scope = TaskScope()
        keep_alive = default_keep_alive(self.config.pool.keep_alive)
        self.daemon = OllamaDaemon(
            self.config.daemon,
            self._scope,
            self._clock,
            _go_duration(keep_alive),
            lambda: {"OLLAMA_MAX_LOADED_MODELS": str(self.verdict.limits.resident)},
        )
        self.client = OllamaClient(self.daemon.dial, self.config.stream.connect_s)
        self.source = ModelSource(self.config, self.daemon, self.client, self._scope, self._clock)
        self._sampler = Sampler(self._clock)
        around = Surroundings(
            limits=lambda: self.verdict.limits,
            shared=lambda: self.daemon.origin == ADOPTED,
            parallel=lambda: 1 if self.daemon.origin == ADOPTED else settings.requests_at_a_time(),
            activity=self._activity,
            pull=self.source.pull_missing,
            substitutes=self._substitutes,
        )
        self.pool = ModelPool(self.config.pool, self.client, self._scope, self._clock, around)
        self._sessions = SessionRegistry(self._scope)
        self._backing = Backing(
            self.daemon, self.client, self.pool, Memory(self.config.stream, self._clock)
        )
        self._aborter = Aborter(
            self.config.stream, self._sessions, self.daemon, self.client, self.pool, self._clock
        )
        self.tally = Tally(self.verdict.tier, gpu=self.verdict.has_gpu)
        self._closed = False
        self.daemon.last_token_ns = self._sessions.last_token_ns
        self.daemon.on_start = self.pool.forget
        if decipher is not None:
            decipher.queue_depth = self._sessions.queue_depth

    def __repr__(self) -> str:
        return f"<OllamaAdapter {len(self._sessions)} sessions, {self.daemon!r}>"

    async def _activity(self, weights: str) -> float | None:
        """The CPU time of the runner of these weights; None where it cannot be seen."""
        sample = await self._sampler.sample(self.daemon.pid, weights)
        return sum(sample.spent.values()) if sample is not None and sample.identified else None

    async def _substitutes(self, request: Request, error: AdapterError) -> Sequence[Substitution]:
        from ollama_adapter.standins import Standins  # for a model alone that cannot be had

        return await Standins(self.client, self.pool)(request, error)

    # The contract

    async def ensure_running(self) -> None:
        """Until a daemon is ready. Idempotent. Raises DaemonError. Cancelling is safe."""
        self._check_open()
        await self._backing.ensure_running()

    def generate_stream(self, model: str, prompt: str, **kwargs: Any) -> TokenStream:
        """The tokens of an answer, as they come.

        Keywords are all request fields and options of Ollama, by their Ollama names, `session_id`, and
        `private=True`, with which nothing of the answer is kept in memory.
        InvalidRequest for one that is unknown or ill-typed, here, before anything is sent; what goes
        wrong later is raised by the iterator.
        """
        self._check_open()
        session_id = self._sessions.claim(kwargs.pop("session_id", None))
        private = _flag(kwargs.pop("private", False))
        request = generate_request(model, prompt, kwargs, self.config.pool.keep_alive)
        return self._stream(request, model, session_id, private)

    async def stop_generation(self, session_id: str) -> None:
        """Abort a session in any phase and wait until its connection is closed.

        Nothing for one that has ended; SessionNotFound for an id that never was. Cancelling is safe.
        """
        await self._sessions.stop(session_id)

    async def abort(self, session_id: str) -> AbortReceipt:
        """Abort a session, then wait until its runner is known to be at rest (docs/streams.md).

        Takes at least 0.2 s, and up to stream.abort_s for each rung of stream.abort_ladder. Raises
        SessionNotFound. Cancelling is safe: the connection is closed all the same.
        """
        return await self._aborter.abort(session_id)

    async def health_check(self) -> bool:
        """Whether a daemon is ready at this moment. Never raises for one that is not."""
        try:
            return (await self.daemon.health()).ready
        except AdapterError:
            return False

    # Beside it

    def chat_stream(
        self, model: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> TokenStream:
        """The same events from /api/chat, tools included; an event of tool calls has no text."""
        self._check_open()
        session_id = self._sessions.claim(kwargs.pop("session_id", None))
        private = _flag(kwargs.pop("private", False))
        request = chat_request(model, messages, kwargs, self.config.pool.keep_alive)
        return self._stream(request, model, session_id, private)

    async def generate(self, model: str, prompt: str, **kwargs: Any) -> Answer:
        """The whole answer. Cancelling aborts the generation."""
        return await collect(self.generate_stream(model, prompt, **kwargs))

    async def chat(
        self, model: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> Answer:
        """The whole answer. Cancelling aborts the generation."""
        return await collect(self.chat_stream(model, messages, **kwargs))

    async def embed(self, model: str, texts: str | Sequence[str], **kwargs: Any) -> Embeddings:
        """One vector per text. Raises ResponseError for a model that does not embed.

        Never from another model than the one asked for: vectors of two models cannot be compared. A
        connection that was lost is followed by one more attempt. Cancelling is safe.
        """
        request = embed_request(model, texts, kwargs, self.config.pool.keep_alive)
        return await self._backing.insist(lambda: self._embed(request))

    async def _embed(self, request: Request) -> Embeddings:
        await self.ensure_running()
        with await self.pool.acquire(request, substitute=False) as lease:
            work = self.client.embed(lease.request, self.config.stream.first_token_s)
            return await self._scope.run(work, name="embed")

    async def pull(
        self,
        model: str,
        on_progress: Report | None = None,
        *,
        confirm: Confirm | None = None,
        also_from: Sequence[str] = (),
    ) -> PullReceipt:
        """Download a model: to call it is to agree. `confirm` is asked once the size is known.

        `also_from` are hosts to allow besides Ollama's registry and `pool.registries`. Raises PullRefused,
        PullFailed, RemoteModelRefused, InvalidModelFile. Cancelling is safe: what has come is kept.
        """
        self._check_open()
        receipt = await self.source.pull(model, on_progress, confirm=confirm, also_from=also_from)
        self.pool.renewed(model)
        return receipt

    async def diagnose(self, session_id: str) -> Stall:
        """Why a session stands still, in one word. Asked of one that flows, the answer means nothing.

        Takes 0.2 s and sends the daemon a health request, never a prompt. Raises SessionNotFound.
        """
        return await self._explain(self._sessions.find(session_id))

    async def health(self) -> Health:
        """What is known of the daemon, asked anew; and how the promises have been kept so far."""
        return replace(await self.daemon.health(), guarantees=self.tally.standings)

    async def aclose(self) -> None:
        """Abort every session, stop what was spawned. Idempotent."""
        self._closed = True
        self._sessions.abort_all()
        self.pool.close()
        try:
            await self.daemon.stop()
        finally:
            await self._scope.aclose()

    async def __aenter__(self) -> Self:
        try:
            await self.ensure_running()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    # Sessions

    def _stream(self, request: Request, model: str, session_id: str, private: bool) -> TokenStream:
        session = Session(
            request,
            Statistics(session_id, model, served_by=model),
            EUMapper(self._profile),
            self._backing,
            self.config.stream,
            self.tally,
            self._clock,
            self._decipher,
            self._explain,
            private,
        )
        return self._sessions.register(session)

    async def _explain(self, session: Session) -> Stall:
        await self.daemon.check()
        runners = await look(self.daemon.pid, self._clock)
        return diagnose(
            Evidence(
                paused=session.paused,
                answers=self.daemon.state is DaemonState.READY,
                loading=self.pool.is_loading(session.request.model),
                tokens=session.statistics.tokens,
                others=self._sessions.others(session),
                runners=runners.count,
                working=runners.working,
                runnable=runners.runnable,
            )
        )

    def _check_open(self) -> None:
        if self._closed:
            raise AdapterError("this adapter is closed", hint="make a new one")


def _flag(private: object) -> bool:
    if not isinstance(private, bool):
        raise InvalidRequest("private must be True or False")
    return private


def _go_duration(keep_alive: str | float) -> str:
    """As an environment variable has it."""
    return keep_alive if isinstance(keep_alive, str) else f"{keep_alive:f}s"
