"""The clients that are compared. Nothing is imported for one but what it needs.

A client is connected, opens answers, and is iterated: one step is one token. What a step gives has the
text of the token, and `stop` aborts an answer as that client does it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import json
import re
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from operator import attrgetter, itemgetter
from typing import Any, Final

MODEL: Final = "replay"
PROMPT: Final = "Say something."
READ_BYTES: Final = 64 << 10
_TEXT: Final = re.compile(rb'"response":"([^"\\\\]*)')


@dataclass(frozen=True)
class Client:
    """`open` begins an answer of so many tokens; `text` is that of what a step gives."""

    open: Callable[[int], Awaitable[AsyncIterator[Any]]]
    text: Callable[[Any], str]
    stop: Callable[[Any], Awaitable[None]]


Connect = Callable[[AsyncExitStack, int, bool], Awaitable[Client]]
"""Makes a client for a port, with or without log probabilities, that the stack closes."""


async def adapter(stack: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """Ours on the whole path: events with E(t), counted into 60 Hz frames."""
    from ollama_adapter.config import Config, DaemonConfig, DaemonMode
    from ollama_adapter.orchestrator import Orchestrator

    config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    ours = (await stack.enter_async_context(Orchestrator(config))).adapter

    async def open_(tokens: int) -> AsyncIterator[Any]:
        return ours.generate_stream(MODEL, PROMPT, logprobs=logprobs, num_predict=tokens)

    return Client(open_, attrgetter("token"), _aclose)


async def adapter_bare(stack: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """Ours without frames."""
    from ollama_adapter.adapter import OllamaAdapter
    from ollama_adapter.config import Config, DaemonConfig, DaemonMode

    config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    ours = await stack.enter_async_context(OllamaAdapter(config))

    async def open_(tokens: int) -> AsyncIterator[Any]:
        return ours.generate_stream(MODEL, PROMPT, logprobs=logprobs, num_predict=tokens)

    return Client(open_, attrgetter("token"), _aclose)


async def official(stack: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """Ollama's own client, as its README uses it."""
    import ollama

    client = ollama.AsyncClient(f"http://127.0.0.1:{port}")
    extra: dict[str, Any] = {"logprobs": True, "top_logprobs": 5} if logprobs else {}

    async def open_(tokens: int) -> AsyncIterator[Any]:
        options = {"num_predict": tokens}
        return await client.generate(MODEL, PROMPT, stream=True, options=options, **extra)

    return Client(open_, attrgetter("response"), _aclose)


async def httpx_orjson(stack: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """httpx, line by line, orjson: a dict per line, no events, no energy."""
    import httpx

    orjson = importlib.import_module("orjson")  # optional: no type checker need know it
    limits = httpx.Limits(max_connections=None)
    client = await stack.enter_async_context(httpx.AsyncClient(timeout=None, limits=limits))

    async def lines(tokens: int) -> AsyncIterator[Any]:
        body = _body(tokens, logprobs)
        url = f"http://127.0.0.1:{port}/api/generate"
        async with client.stream("POST", url, json=body) as response:
            async for line in response.aiter_lines():
                yield orjson.loads(line)

    async def open_(tokens: int) -> AsyncIterator[Any]:
        return lines(tokens)

    return Client(open_, itemgetter("response"), _aclose)


async def aiohttp_msgspec(stack: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """aiohttp, line by line, msgspec: a struct per line (the same as ours), no events, no energy."""
    import msgspec

    from ollama_adapter.core.records import GenerateRecord

    aiohttp = importlib.import_module("aiohttp")
    decode = msgspec.json.Decoder(GenerateRecord).decode
    connector = aiohttp.TCPConnector(limit=0)
    session = await stack.enter_async_context(
        aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout())
    )

    async def lines(tokens: int) -> AsyncIterator[Any]:
        body = _body(tokens, logprobs)
        url = f"http://127.0.0.1:{port}/api/generate"
        async with session.post(url, json=body) as response:
            async for line in response.content:
                yield decode(line)

    async def open_(tokens: int) -> AsyncIterator[Any]:
        return lines(tokens)

    return Client(open_, attrgetter("response"), _aclose)


class _Bare:
    """Cuts the text out of what comes, and wakes its reader once per read. No HTTP, no JSON, no transport."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._texts: deque[str] = deque()
        self._over = False
        self._waiting: asyncio.Future[None] | None = None
        self._loop.add_reader(connection.fileno(), self._receive)

    def _receive(self) -> None:
        data = self._connection.recv(READ_BYTES)
        self._texts.extend(each.decode() for each in _TEXT.findall(data) if each)
        if not data or b'"done":true' in data:
            self._over = True
            self._loop.remove_reader(self._connection.fileno())
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def read(self) -> AsyncIterator[str]:
        try:
            while self._texts or not self._over:
                if not self._texts:
                    self._waiting = self._loop.create_future()
                    await self._waiting
                while self._texts:
                    yield self._texts.popleft()
        finally:
            self._loop.remove_reader(self._connection.fileno())
            self._connection.close()


async def asyncio_alone(_: AsyncExitStack, port: int, logprobs: bool) -> Client:
    """What Python's event loop takes by itself to get a token to a task: the limit of any client on it."""

    async def open_(tokens: int) -> AsyncIterator[Any]:
        body = json.dumps(_body(tokens, logprobs)).encode()
        head = f"POST /api/generate HTTP/1.1\r\nHost: a\r\nContent-Length: {len(body)}\r\n\r\n"
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setblocking(False)
        connection.send(head.encode() + body)
        return _Bare(connection).read()

    return Client(open_, str, _aclose)


async def _aclose(answer: Any) -> None:
    await answer.aclose()


OURS: Final = "ollama-adapter"
OFFICIAL: Final = "official client"
C: Final = "C client"
ALONE: Final = "asyncio alone"
CLIENTS: Final[dict[str, tuple[Connect, tuple[str, ...]]]] = {
    OURS: (adapter, ()),
    "ollama-adapter, no frames": (adapter_bare, ()),
    OFFICIAL: (official, ("ollama",)),
    "httpx + orjson": (httpx_orjson, ("httpx", "orjson")),
    "aiohttp + msgspec": (aiohttp_msgspec, ("aiohttp", "msgspec")),
    ALONE: (asyncio_alone, ()),
}
"""Every client in Python, and the packages it needs beside ours. The one in C is client.c."""


def missing(name: str) -> list[str]:
    """The packages that a client needs and that are not installed."""
    return [each for each in CLIENTS[name][1] if importlib.util.find_spec(each) is None]


def _body(tokens: int, logprobs: bool) -> dict[str, object]:
    extra: dict[str, object] = {"logprobs": True, "top_logprobs": 5} if logprobs else {}
    return {"model": MODEL, "prompt": PROMPT, "options": {"num_predict": tokens}} | extra
