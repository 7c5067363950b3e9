"""The clients that are compared; each runs in a process of its own, which is this module.

    python -m benchmarks.clients NAME PORT STREAMS SECONDS TOKENS LOGPROBS

A client opens streams, and is iterated: one step is one token. With SECONDS 0 a single answer of TOKENS
is read to its end; otherwise STREAMS answers flow for that long, after a second in which they settle.
Prints a Sample as JSON. Nothing is imported for a client but what it needs.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from typing import Any, Final

MODEL: Final = "replay"
PROMPT: Final = "Say something."
SETTLE_S: Final = 1.0
WARM_UP_TOKENS: Final = 20

Open = Callable[[int], Awaitable[AsyncIterator[object]]]
"""Begins an answer of so many tokens."""
Connect = Callable[[AsyncExitStack, int, bool], Awaitable[Open]]
"""Makes a client for a port, with or without log probabilities, that the stack closes."""


@dataclass(frozen=True)
class Sample:
    """CPU of the client's process and time passed, in seconds, for so many tokens."""

    cpu_s: float
    wall_s: float
    tokens: int


async def adapter(stack: AsyncExitStack, port: int, logprobs: bool) -> Open:
    """Ours on the whole path: events with E(t), counted into 60 Hz frames."""
    from ollama_adapter.config import Config, DaemonConfig, DaemonMode
    from ollama_adapter.orchestrator import Orchestrator

    config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    ours = (await stack.enter_async_context(Orchestrator(config))).adapter

    async def open_(tokens: int) -> AsyncIterator[object]:
        return ours.generate_stream(MODEL, PROMPT, logprobs=logprobs, num_predict=tokens)

    return open_


async def adapter_bare(stack: AsyncExitStack, port: int, logprobs: bool) -> Open:
    """Ours without frames."""
    from ollama_adapter.adapter import OllamaAdapter
    from ollama_adapter.config import Config, DaemonConfig, DaemonMode

    config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    ours = await stack.enter_async_context(OllamaAdapter(config))

    async def open_(tokens: int) -> AsyncIterator[object]:
        return ours.generate_stream(MODEL, PROMPT, logprobs=logprobs, num_predict=tokens)

    return open_


async def official(stack: AsyncExitStack, port: int, logprobs: bool) -> Open:
    """Ollama's own client, as its README uses it."""
    import ollama

    client = ollama.AsyncClient(f"http://127.0.0.1:{port}")
    extra: dict[str, Any] = {"logprobs": True, "top_logprobs": 5} if logprobs else {}

    async def open_(tokens: int) -> AsyncIterator[object]:
        options = {"num_predict": tokens}
        return await client.generate(MODEL, PROMPT, stream=True, options=options, **extra)

    return open_


async def httpx_orjson(stack: AsyncExitStack, port: int, logprobs: bool) -> Open:
    """httpx, line by line, orjson: a dict per line, no events, no energy."""
    import httpx

    orjson = importlib.import_module("orjson")  # optional: no type checker need know it
    limits = httpx.Limits(max_connections=None)
    client = await stack.enter_async_context(httpx.AsyncClient(timeout=None, limits=limits))

    async def lines(tokens: int) -> AsyncIterator[object]:
        body = _body(tokens, logprobs)
        url = f"http://127.0.0.1:{port}/api/generate"
        async with client.stream("POST", url, json=body) as response:
            async for line in response.aiter_lines():
                yield orjson.loads(line)

    async def open_(tokens: int) -> AsyncIterator[object]:
        return lines(tokens)

    return open_


async def aiohttp_msgspec(stack: AsyncExitStack, port: int, logprobs: bool) -> Open:
    """aiohttp, line by line, msgspec: a struct per line (the same as ours), no events, no energy."""
    import msgspec

    from ollama_adapter.core.records import GenerateRecord

    aiohttp = importlib.import_module("aiohttp")
    decode = msgspec.json.Decoder(GenerateRecord).decode
    connector = aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout())
    )

    async def lines(tokens: int) -> AsyncIterator[object]:
        body = _body(tokens, logprobs)
        url = f"http://127.0.0.1:{port}/api/generate"
        async with session.post(url, json=body) as response:
            async for line in response.content:
                yield decode(line)

    async def open_(tokens: int) -> AsyncIterator[object]:
        return lines(tokens)

    return open_


OFFICIAL: Final = "official client"
CLIENTS: Final[dict[str, tuple[Connect, tuple[str, ...]]]] = {
    "ollama-adapter": (adapter, ()),
    "ollama-adapter, no frames": (adapter_bare, ()),
    OFFICIAL: (official, ("ollama",)),
    "httpx + orjson": (httpx_orjson, ("httpx", "orjson")),
    "aiohttp + msgspec": (aiohttp_msgspec, ("aiohttp", "msgspec")),
}
"""Every client, and the packages it needs beside ours."""


def missing(name: str) -> list[str]:
    """The packages that a client needs and that are not installed."""
    return [each for each in CLIENTS[name][1] if importlib.util.find_spec(each) is None]


def _body(tokens: int, logprobs: bool) -> dict[str, object]:
    extra: dict[str, object] = {"logprobs": True, "top_logprobs": 5} if logprobs else {}
    return {"model": MODEL, "prompt": PROMPT, "options": {"num_predict": tokens}} | extra


async def measure(
    name: str, port: int, streams: int, seconds: float, tokens: int, logprobs: bool
) -> Sample:
    connect, _ = CLIENTS[name]
    async with AsyncExitStack() as stack:
        open_ = await connect(stack, port, logprobs)
        await _drain(open_, WARM_UP_TOKENS if seconds else tokens // 10)
        if seconds:
            return await _measure_flow(open_, streams, seconds, tokens)
        cpu, wall = time.process_time(), time.perf_counter()
        count = await _drain(open_, tokens)
        return Sample(time.process_time() - cpu, time.perf_counter() - wall, count)


async def _drain(open_: Open, tokens: int) -> int:
    """Read one answer to its end."""
    count = 0
    async for _ in await open_(tokens):
        count += 1
    return count


async def _measure_flow(open_: Open, streams: int, seconds: float, tokens: int) -> Sample:
    """Many answers at once, while all of them flow."""
    count = 0

    async def follow() -> None:
        nonlocal count
        async for _ in await open_(tokens):
            count += 1

    followers = [asyncio.create_task(follow()) for _ in range(streams)]
    await asyncio.sleep(SETTLE_S)
    cpu, wall, before = time.process_time(), time.perf_counter(), count
    await asyncio.sleep(seconds)
    sample = Sample(time.process_time() - cpu, time.perf_counter() - wall, count - before)
    for each in followers:
        each.cancel()
    results = await asyncio.gather(*followers, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return sample


def main(arguments: list[str]) -> None:
    name, port, streams, seconds, tokens, logprobs = arguments
    work = measure(name, int(port), int(streams), float(seconds), int(tokens), logprobs == "1")
    print(json.dumps(asdict(asyncio.run(work))))


if __name__ == "__main__":
    main(sys.argv[1:])
