"""The one way out: what is asked for, what is refused, what is counted."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest

import ollama_adapter
from ollama_adapter.core.registry import Address
from ollama_adapter.puller.proxy import Proxy
from ollama_adapter.system.scope import TaskScope

pytestmark = pytest.mark.anyio
SOURCE = Path(ollama_adapter.__file__).parent
RESOLVING = re.compile(r"getaddrinfo|gethostby|getnameinfo|getfqdn")


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    scope = TaskScope()
    with anyio.fail_after(30):
        yield scope
        await scope.aclose()


@pytest.fixture
async def echo() -> AsyncIterator[int]:
    """A port that says everything back, and then ends."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()


async def ask(stream: socket.socket, data: bytes) -> bytes:
    """Everything that comes back."""
    loop = asyncio.get_running_loop()
    stream.setblocking(False)
    with stream:
        said = b""
        with contextlib.suppress(ConnectionError):
            await loop.sock_sendall(stream, data)
            while piece := await loop.sock_recv(stream, 4096):
                said += piece
        return said


async def test_bytes_go_both_ways_and_are_counted_by_host(scope: TaskScope, echo: int) -> None:
    proxy = Proxy([Address("127.0.0.1", echo)], [], scope)
    head = f"CONNECT 127.0.0.1:{echo} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for _ in range(2):
        assert await ask(proxy.stream(), head + b"hello") == b"HTTP/1.1 200 OK\r\n\r\nhello"
    traffic = proxy.traffic[f"127.0.0.1:{echo}"]
    assert (traffic.sent, traffic.received) == (10, 10)
    assert proxy.refused == []
    await proxy.aclose()


async def test_what_is_not_on_the_list_is_refused_and_remembered(
    scope: TaskScope, echo: int
) -> None:
    proxy = Proxy([Address("registry.example", 443)], [], scope)
    for host in (f"127.0.0.1:{echo}", f"localhost:{echo}", "registry.example:80"):
        said = await ask(proxy.stream(), f"CONNECT {host} HTTP/1.1\r\n\r\n".encode())
        assert said == b"HTTP/1.1 403 Forbidden\r\n\r\n"
        assert proxy.refused[-1] == host
    assert proxy.traffic == {}
    await proxy.aclose()


@pytest.mark.parametrize(
    "head",
    [
        b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:0 HTTP/1.1\r\n\r\n",
        b"CONNECT 127.0.0.1:65536 HTTP/1.1\r\n\r\n",
        b"CONNECT [::1]:443 HTTP/1.1\r\n\r\n",
        b"CONNECT a b:443 HTTP/1.1\r\n\r\n",
        b"CONNECT \xff:443 HTTP/1.1\r\n\r\n",
        b"x" * 5000,
    ],
)
async def test_what_is_no_request_gets_nowhere(head: bytes, scope: TaskScope) -> None:
    proxy = Proxy([Address("127.0.0.1", 443)], [], scope)
    assert await ask(proxy.stream(), head) in (b"HTTP/1.1 400 Bad Request\r\n\r\n", b"")
    assert (proxy.refused, proxy.traffic) == ([], {})
    await proxy.aclose()


async def test_closing_ends_what_is_under_way(scope: TaskScope) -> None:
    proxy = Proxy([], [], scope)
    waiting = proxy.stream()
    await anyio.wait_all_tasks_blocked()
    not_begun = proxy.stream()
    await proxy.aclose()
    for each in (waiting, not_begun):
        assert await ask(each, b"") == b""
    await proxy.aclose()


def test_nothing_else_in_the_package_resolves_a_name() -> None:
    found = {
        str(path.relative_to(SOURCE))
        for path in SOURCE.rglob("*.py")
        if RESOLVING.search(path.read_text("utf-8"))
    }
    assert found == {"puller/proxy.py"}
