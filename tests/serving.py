"""An adapter on a scripted daemon, for the tests of the services."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from anyio.lowlevel import checkpoint

from ollama_adapter import (
    Config,
    DaemonConfig,
    DaemonMode,
    OllamaAdapter,
    PoolConfig,
    StreamConfig,
    TokenEvent,
    TokenStream,
)
from ollama_adapter.testing import Script, ScriptedDaemon, ScriptedRequest, answer, stream

WATCHDOG_S = 20.0


def saying(*words: str, **last: object) -> Script:
    """A daemon that answers every prompt with these words."""
    return lambda _: [stream(answer(words, **last))]


def sending(*pieces: bytes) -> Script:
    """A daemon that answers every prompt with these bytes."""

    def script(_: ScriptedRequest) -> Iterable[bytes]:
        return pieces

    return script


def config_for(daemon: ScriptedDaemon, stream: StreamConfig | None = None) -> Config:
    return Config(
        daemon=DaemonConfig(port=daemon.port, mode=DaemonMode.ADOPT),
        pool=PoolConfig(watch_s=0.0),  # requests and tasks are counted
        stream=stream or StreamConfig(),
    )


@asynccontextmanager
async def served(
    script: Script, stream: StreamConfig | None = None, version: str = "0.32.15"
) -> AsyncIterator[tuple[OllamaAdapter, ScriptedDaemon]]:
    async with (
        ScriptedDaemon(script, version=version) as daemon,
        OllamaAdapter(config_for(daemon, stream)) as adapter,
    ):
        yield adapter, daemon


async def collect(stream: TokenStream) -> list[TokenEvent]:
    return [event async for event in stream]


def text_of(events: Iterable[TokenEvent]) -> str:
    return "".join(each.token for each in events)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop run until `condition` holds; the watchdog is generous."""
    async with asyncio.timeout(WATCHDOG_S):
        while not condition():
            await checkpoint()


class DaemonThread:
    """A scripted daemon on a loop of its own, since the caller's thread blocks."""

    def __init__(self, script: Script | ScriptedDaemon) -> None:
        self.daemon = script if isinstance(script, ScriptedDaemon) else ScriptedDaemon(script)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def __enter__(self) -> ScriptedDaemon:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self.daemon.__aenter__(), self._loop).result(WATCHDOG_S)
        return self.daemon

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.daemon.stop(), self._loop).result(WATCHDOG_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
