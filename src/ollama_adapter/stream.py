"""The sessions of an adapter by their ids, and TokenStream, the reader's end of one.

A stream owns no task and no time limit: the pump is a child of the adapter's scope, and here one only
reads. An asynchronous generator would register nothing before its first step, would not notice that it
was forgotten, and would cancel the wrong task from inside a time-out.
"""

from __future__ import annotations

import asyncio
import secrets
import warnings
from collections import Counter, deque
from collections.abc import AsyncIterator, Generator
from types import TracebackType
from typing import Any, Final, Self

from ollama_adapter.core.aborts import phase_of
from ollama_adapter.errors import GenerationError, Interruption, InvalidRequest, SessionNotFound
from ollama_adapter.events import Answer, Channel, LoadProgress, Phase, Statistics, TokenEvent
from ollama_adapter.session import Session
from ollama_adapter.system.scope import TaskScope

REMEMBERED: Final = 4096  # ended sessions whose id is still known


class SessionRegistry:
    """Every session that has not ended, and the ids of those that ended lately."""

    def __init__(self, scope: TaskScope) -> None:
        self._scope = scope
        self._live: dict[str, Session] = {}
        self._ended: deque[str] = deque(maxlen=REMEMBERED)

    def __len__(self) -> int:
        return len(self._live)

    def claim(self, session_id: object) -> str:
        """The id of a new session. Raises InvalidRequest for one that is taken or is none."""
        if session_id is None:
            return secrets.token_hex(8)
        if not isinstance(session_id, str) or not session_id:
            raise InvalidRequest("session_id must be a string that is not empty")
        held = self._live.get(session_id)
        if held is not None and not held.ended:
            raise InvalidRequest(
                "session_id is that of a session which has not ended", hint="use another id"
            )
        return session_id

    def register(self, session: Session) -> TokenStream:
        """From now on the session can be stopped."""
        self._live[session.statistics.session_id] = session
        return TokenStream(session, self)

    async def stop(self, session_id: str) -> None:
        """Abort a session; nothing for one that has ended. Raises SessionNotFound."""
        session = self.known(session_id)
        if session is not None:
            await session.stop()
            self.forget(session)

    def known(self, session_id: str) -> Session | None:
        """The session of this id; None for one that has ended. Raises SessionNotFound."""
        session = self._live.get(session_id)
        if session is None and session_id not in self._ended:
            raise SessionNotFound(
                "there is no session with this id",
                session_id=str(session_id),
                hint="the id is TokenStream.session_id, or what was passed as session_id=",
            )
        return session

    def phase(self, session: Session) -> Phase:
        """How far it has come, as far as that can be told from outside of the daemon."""
        key = session.request.model.lower()
        ahead = [
            each
            for each in self._working()
            if each.exchange and each.started_ns < session.started_ns
        ]
        return phase_of(
            started=session.started,
            ended=session.ended,
            sent=session.exchange is not None,
            tokens=session.statistics.tokens,
            ahead=sum(each.request.model.lower() == key for each in ahead),
        )

    def start(self, session: Session) -> None:
        """Begin its work, at the first step of its reader."""
        session.start(self._spawn)

    def forget(self, session: Session) -> None:
        """It has ended, or will never start. Idempotent."""
        session_id = session.statistics.session_id
        if self._live.get(session_id) is session:
            del self._live[session_id]
            self._ended.append(session_id)

    def abort_all(self) -> None:
        for session in list(self._live.values()):
            session.abort()

    def queue_depth(self) -> int:
        """How many tokens wait for their readers."""
        return sum(len(each.channel) for each in self._live.values())

    def find(self, session_id: str) -> Session:
        """A session that has not ended. Raises SessionNotFound."""
        session = self._live.get(session_id)
        if session is None:
            raise SessionNotFound("no session with this id is running", session_id=str(session_id))
        return session

    def others(self, session: Session) -> int:
        """How many other sessions have begun on the same model."""
        mine = session.started and not session.ended
        return self.at_work()[session.request.model.lower()] - mine

    def at_work(self) -> Counter[str]:
        """How many sessions have begun and not ended, by the keys of their models."""
        return Counter(each.request.model.lower() for each in self._working())

    def _working(self) -> list[Session]:
        return [each for each in self._live.values() if each.started and not each.ended]

    def last_token_ns(self) -> int:
        """When the latest token of any session arrived; 0 when none flows."""
        return max((each.last_token_ns for each in self._live.values()), default=0)

    def _spawn(self, session: Session) -> asyncio.Task[None]:
        task = self._scope.spawn(session.run(), name=f"session {session.statistics.session_id}")
        task.add_done_callback(lambda _: self.forget(session))
        return task


class TokenStream(AsyncIterator[TokenEvent]):
    """What generate_stream returns: iterate it, or `async with` it; awaiting it gives itself.

    Nothing is sent before the first step. Leaving `async with` aborts what still runs; a plain `break`
    cannot be noticed while the stream is referenced.
    """

    def __init__(self, session: Session, registry: SessionRegistry) -> None:
        self._session = session
        self._registry = registry

    def __repr__(self) -> str:
        return f"<TokenStream of {self._session!r}>"

    @property
    def session_id(self) -> str:
        return self._session.statistics.session_id

    @property
    def statistics(self) -> Statistics:
        """The session's account; complete once its `finish` is set."""
        return self._session.statistics

    @property
    def progress(self) -> LoadProgress | None:
        """How far its model is on the way into memory; None before that is known."""
        return self._session.hold.progress

    @property
    def interruption(self) -> Interruption | None:
        """Why it stands still, from an interruption until tokens flow again; else None."""
        session, recovery = self._session, self._session.recovery
        if session.ended or recovery is None:
            return None
        return recovery.standing(session.statistics.tokens)

    async def __anext__(self) -> TokenEvent:
        """The next token. Raises what ended the generation, once. Cancelling is safe: none is lost."""
        session = self._session
        event = session.channel.get_nowait()
        if event is None:
            if not session.started:
                self._registry.start(session)
            try:
                event = await session.channel.wait()
            except RuntimeError:
                self._check_loop()
                raise
            if event is None:
                raise StopAsyncIteration
            session.delivered(event)
        return event

    def _check_loop(self) -> None:
        """Python refuses to wait for what belongs to another event loop; here is why, in our words."""
        if self._session.ended or self._session.loop in (None, asyncio.get_running_loop()):
            return
        if self._session.orphaned:
            self._session.abort()
        raise GenerationError(
            "this stream belongs to another event loop",
            session_id=self.session_id,
            hint="read a stream in the event loop where it was first read",
        ) from None

    async def stop(self) -> None:
        """Abort the generation; the iterator ends quietly. Idempotent. Cancelling is safe."""
        await self._session.stop()
        self._registry.forget(self._session)

    async def aclose(self) -> None:
        """The same as stop."""
        await self.stop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield  # a generator that gives itself without waiting

    def __del__(self) -> None:
        session = self._session
        if session.started and not session.ended:
            _abort_from_anywhere(session)  # first: a warning may be an error
            warnings.warn(
                f"session {self.session_id} was forgotten before its end: use `async with`",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )
        elif not session.started:
            self._registry.forget(session)


async def collect(stream: TokenStream) -> Answer:
    """The whole answer. Cancelling aborts the generation."""
    parts: dict[Channel, list[str]] = {each: [] for each in Channel}
    calls: list[dict[str, Any]] = []
    async with stream:
        async for event in stream:
            parts[event.channel].append(event.token)
            calls += event.tool_calls or []
    text, thinking = "".join(parts[Channel.TEXT]), "".join(parts[Channel.THINKING])
    return Answer(text, thinking, calls, stream.statistics)


def _abort_from_anywhere(session: Session) -> None:
    """A finalizer may run in any thread."""
    if session.orphaned:
        session.abort()
    elif session.loop is not None:
        session.loop.call_soon_threadsafe(session.abort)
