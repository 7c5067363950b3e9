"""A pretended daemon on an event loop in a thread of its own: for tests without `async`, and for any mixture.

Everything may be called from any thread.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError
from ollama_adapter.testing.faults import Fault, Faults
from ollama_adapter.testing.generating import Generation
from ollama_adapter.testing.memory import Move
from ollama_adapter.testing.model import PretendModel
from ollama_adapter.testing.pretend import PretendOllama
from ollama_adapter.testing.scripted import ScriptedRequest

T = TypeVar("T")


class BackgroundOllama:
    """A PretendOllama without await; it takes the same arguments. Use it as a context manager."""

    def __init__(self, *models: PretendModel | str, **options: Any) -> None:
        self._daemon = PretendOllama(*models, **options)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __repr__(self) -> str:
        return f"<BackgroundOllama of {self._daemon!r}>"

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="pretended ollama", daemon=True
        )
        self._thread.start()
        self._wait(self._daemon.revive())
        return self

    def __exit__(self, *_: object) -> None:
        loop, thread = self._loop, self._thread
        assert loop is not None
        assert thread is not None
        try:
            self._wait(self._daemon.aclose())
        finally:
            self._loop = None
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()

    @property
    def port(self) -> int:
        return self._daemon.port

    @property
    def url(self) -> str:
        return self._daemon.url

    @property
    def config(self) -> Config:
        """The Config with which an adapter uses this daemon, and no other."""
        return self._daemon.config

    @property
    def faults(self) -> Faults:
        """What goes wrong from now on; set it to a Faults, or to text in the fault language."""
        return self._daemon.faults

    @faults.setter
    def faults(self, faults: str | Faults) -> None:
        parsed = Faults.parse(faults) if isinstance(faults, str) else faults
        self._ask(lambda: setattr(self._daemon, "faults", parsed))

    @property
    def struck(self) -> list[Fault]:
        """The faults that have happened since they were set."""
        return self._ask(lambda: self._daemon.struck)

    @property
    def alive(self) -> bool:
        return self._ask(lambda: self._daemon.alive)

    @property
    def connections(self) -> int:
        """How many are open."""
        return self._ask(lambda: self._daemon.connections)

    @property
    def held(self) -> int:
        """How many connections stand still because their client does not read."""
        return self._ask(lambda: self._daemon.held)

    @property
    def dropped(self) -> int:
        """How many requests the client has left before their answer was over."""
        return self._ask(lambda: self._daemon.dropped)

    @property
    def residents(self) -> list[str]:
        """The models in memory."""
        return self._ask(lambda: self._daemon.residents)

    @property
    def moves(self) -> list[tuple[Move, str]]:
        """What happened in memory, in order."""
        return self._ask(lambda: self._daemon.moves)

    @property
    def taken_bytes(self) -> tuple[int, int]:
        """Of RAM and of VRAM, by its models."""
        return self._ask(lambda: self._daemon.taken_bytes)

    @property
    def most_bytes(self) -> tuple[int, int]:
        """The most of RAM and of VRAM that was ever taken."""
        return self._ask(lambda: self._daemon.most_bytes)

    def grow(self, model: str, size_bytes: int) -> None:
        """A model in memory takes so many bytes more."""
        self._ask(lambda: self._daemon.grow(model, size_bytes))

    def fall_back(self, model: str) -> None:
        """A model in memory is not on the GPU any more."""
        self._ask(lambda: self._daemon.fall_back(model))

    def unload(self, model: str) -> None:
        """Somebody else has unloaded a model; it goes when its last answer has ended."""
        self._ask(lambda: self._daemon.unload(model))

    @property
    def requests(self) -> list[ScriptedRequest]:
        """What came, in order."""
        return self._ask(lambda: self._daemon.requests)

    def generations(self) -> list[Generation]:
        """The requests for text, each with how far it came."""
        return self._ask(self._daemon.generations)

    def until(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """Wait for a condition on `requests`, `generations()` and the like. Raises TimeoutError."""
        self._wait(self._daemon.until(condition, timeout_s))

    async def auntil(self, condition: Callable[[], object], timeout_s: float = 30.0) -> None:
        """The same for a test with `async`, whose own loop goes on meanwhile."""
        await asyncio.wrap_future(self._start(self._daemon.until(condition, timeout_s)))

    def die(self) -> None:
        """Go away as a killed daemon does: connections end, the port is closed. Idempotent."""
        self._wait(self._daemon.die())

    def revive(self) -> None:
        """Come back on the same port, with nothing in memory. Idempotent."""
        self._wait(self._daemon.revive())

    def _ask(self, question: Callable[[], T]) -> T:
        """The answer, found on the daemon's own thread: its loop changes what is asked about."""
        inside = threading.current_thread() is self._thread  # a condition of `until` is tried there
        if inside or self._loop is None:
            return question()
        return self._wait(_call(question))

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        future = self._start(work)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise

    def _start(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        if self._loop is None:
            work.close()
            raise AdapterError(
                "this daemon is not running",
                hint="use it as a context manager: with BackgroundOllama()",
            )
        return asyncio.run_coroutine_threadsafe(work, self._loop)


async def _call(question: Callable[[], T]) -> T:
    return question()
