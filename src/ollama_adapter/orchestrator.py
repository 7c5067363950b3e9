"""Opens and closes everything, in one place, and receives every frame.

`async with Orchestrator(config)` is the way to embed the whole in an application: decipher, daemon,
pool and adapter are open inside, and closed in reverse within `shutdown_s` when it is left, or when
opening one of them fails.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Self

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.config import Config
from ollama_adapter.decipher import Decipher, FrameStream
from ollama_adapter.events import Frame
from ollama_adapter.system import settings
from ollama_adapter.system.clock import Clock, SystemClock
from ollama_adapter.system.scope import TaskScope

log = logging.getLogger("ollama_adapter")


class Orchestrator:
    """`adapter` generates, `decipher` shows; both live as long as the `async with`.

    `frames` and `last_frame` tell what was received; `on_frame` is called with every frame.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        on_frame: Callable[[Frame], None] | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.config = settings.load_config() if config is None else config
        clock = clock or SystemClock()
        self.decipher = Decipher(self.config.frames, clock)
        self.adapter = OllamaAdapter(self.config, clock=clock, decipher=self.decipher)
        self.frames = 0
        self.last_frame: Frame | None = None
        self._stack = AsyncExitStack()
        self.decipher.on_frame(self._receive)
        if on_frame is not None:
            self.decipher.on_frame(on_frame)

    def __repr__(self) -> str:
        return f"<Orchestrator {self.frames} frames, {self.adapter!r}>"

    def subscribe(self) -> FrameStream:
        """Frames for one more reader; it skips those it is too slow for."""
        return self.decipher.subscribe()

    async def __aenter__(self) -> Self:
        """Open everything. Raises DaemonError; then nothing is left open."""
        async with AsyncExitStack() as stack:
            scope = TaskScope()
            stack.push_async_callback(scope.aclose)
            self.decipher.open(scope)
            stack.callback(self.decipher.close)
            await stack.enter_async_context(self.adapter)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close everything, in reverse, within `shutdown_s`. Idempotent."""
        try:
            async with asyncio.timeout(self.config.shutdown_s):
                await self._stack.aclose()
        except TimeoutError:
            log.error("closing took over %g s and was cut short", self.config.shutdown_s)

    def _receive(self, frame: Frame) -> None:
        self.frames += 1
        self.last_frame = frame
