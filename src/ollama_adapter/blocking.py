"""A thin synchronous face for scripts and notebooks.

Its adapter lives on an event loop in a thread of its own, so that it works inside a running loop too
(a notebook's, for example). Nothing is written twice: every method waits for the asynchronous one.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import (
    AbortReceipt,
    Answer,
    Embeddings,
    Health,
    PullProgress,
    PullReceipt,
    Statistics,
    TokenEvent,
)
from ollama_adapter.stream import TokenStream

T = TypeVar("T")


class BlockingStream(Iterator[TokenEvent]):
    """Iterate it, or `with` it: leaving the block aborts what still runs."""

    def __init__(
        self, stream: TokenStream, wait: Callable[[Coroutine[Any, Any, Any]], Any]
    ) -> None:
        self._stream = stream
        self._wait = wait

    @property
    def session_id(self) -> str:
        return self._stream.session_id

    @property
    def statistics(self) -> Statistics:
        return self._stream.statistics

    def __next__(self) -> TokenEvent:
        event: TokenEvent | None = self._wait(_next(self._stream))
        if event is None:
            raise StopIteration
        return event

    def stop(self) -> None:
        """Abort the generation. Idempotent."""
        with contextlib.suppress(AdapterError):  # a closed adapter has ended it
            self._wait(self._stream.stop())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


class BlockingAdapter:
    """OllamaAdapter without await. Use it as a context manager, or call `close`."""

    def __init__(self, config: Config | None = None) -> None:
        self._adapter = OllamaAdapter(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="ollama-adapter", daemon=True
        )
        self._thread.start()

    def __repr__(self) -> str:
        return f"<BlockingAdapter of {self._adapter!r}>"

    def ensure_running(self) -> None:
        self._wait(self._adapter.ensure_running())

    def generate_stream(self, model: str, prompt: str, **kwargs: Any) -> BlockingStream:
        return BlockingStream(
            self._wait(_call(self._adapter.generate_stream, model, prompt, **kwargs)), self._wait
        )

    def chat_stream(
        self, model: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any
    ) -> BlockingStream:
        return BlockingStream(
            self._wait(_call(self._adapter.chat_stream, model, messages, **kwargs)), self._wait
        )

    def generate(self, model: str, prompt: str, **kwargs: Any) -> Answer:
        return self._wait(self._adapter.generate(model, prompt, **kwargs))

    def chat(self, model: str, messages: Sequence[Mapping[str, Any]], **kwargs: Any) -> Answer:
        return self._wait(self._adapter.chat(model, messages, **kwargs))

    def embed(self, model: str, texts: str | Sequence[str], **kwargs: Any) -> Embeddings:
        return self._wait(self._adapter.embed(model, texts, **kwargs))

    def pull(
        self,
        model: str,
        on_progress: Callable[[PullProgress], None] | None = None,
        *,
        also_from: Sequence[str] = (),
    ) -> PullReceipt:
        """Download a model: to call it is to agree. `on_progress` is called in the adapter's thread."""
        return self._wait(self._adapter.pull(model, on_progress, also_from=also_from))

    def stop_generation(self, session_id: str) -> None:
        """Abort a session, from any thread."""
        self._wait(self._adapter.stop_generation(session_id))

    def abort(self, session_id: str) -> AbortReceipt:
        """Abort a session, from any thread, and wait until its runner is known to be at rest."""
        return self._wait(self._adapter.abort(session_id))

    def health_check(self) -> bool:
        return not self._loop.is_closed() and self._wait(self._adapter.health_check())

    def health(self) -> Health:
        return self._wait(self._adapter.health())

    def close(self) -> None:
        """Abort every session, stop what was spawned, end the thread. Idempotent."""
        if self._loop.is_closed():
            return
        try:
            self._wait(self._adapter.aclose())
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Self:
        try:
            self.ensure_running()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; an interrupt (Ctrl-C) cancels it there as well."""
        if self._loop.is_closed():
            work.close()
            raise AdapterError("this adapter is closed", hint="make a new one")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise


async def _call(method: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Run a plain method on the adapter's own loop."""
    return method(*args, **kwargs)


async def _next(stream: TokenStream) -> TokenEvent | None:
    return await anext(stream, None)
