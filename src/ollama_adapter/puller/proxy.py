"""The one place of the package that resolves a name and dials out: the proxy of one pull.

The jailed process (fetching.py) is handed streams that end here. On each it asks for one host with
CONNECT; what is not on the list of this pull is refused, and remembered. Behind that the proxy moves bytes
and counts them: TLS is between the two ends, and nothing is read here. A name of the network never leads
to this machine (core.registry.may_reach).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from ollama_adapter.core.registry import Address, may_dial, may_reach
from ollama_adapter.system.scope import TaskScope

READ_BYTES: Final = 1 << 18
HEAD_BYTES: Final = 1 << 12
DIAL_S: Final = 25.0
ADDRESS_S: Final = 5.0  # then the next one: a network may swallow what goes to some of them
_CONNECT: Final = re.compile(r"CONNECT ([A-Za-z0-9._-]{1,253}):(\d{1,5}) HTTP/1\.1\r\n")


class Traffic(msgspec.Struct):
    """What went to a host and came from it, in bytes, TLS included."""

    sent: int = 0
    received: int = 0


class Proxy:
    """Dials `allowed` hosts, whatever is asked of it. `closest` is the one that the bytes come from."""

    def __init__(
        self, allowed: Iterable[Address], listed: Iterable[Address], scope: TaskScope
    ) -> None:
        self._allowed = tuple(allowed)
        self._listed = tuple(listed)
        self._scope = scope
        self._tasks: set[asyncio.Task[None]] = set()
        self.traffic: dict[str, Traffic] = {}
        self.refused: list[str] = []
        self.host = ""
        self.on_bytes: Callable[[], None] = lambda: None

    def __repr__(self) -> str:
        received = sum(each.received for each in self.traffic.values())
        return f"<Proxy {len(self.traffic)} hosts, {received} bytes, {len(self.refused)} refused>"

    def stream(self) -> socket.socket:
        """One end of a new stream; the proxy serves the other. Whoever gets it must close it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        task = self._scope.spawn(self._serve(ours), "pull proxy")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        task.add_done_callback(lambda _: ours.close())  # it may be cancelled before it begins
        return theirs

    async def aclose(self) -> None:
        """No connection is left. Idempotent."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _serve(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            wanted = await _read_request(stream)
            if wanted is None:
                await _answer(stream, "400 Bad Request")
            elif not may_dial(wanted, self._allowed):
                self.refused.append(str(wanted))
                await _answer(stream, "403 Forbidden")
            else:
                await self._connect(stream, wanted)

    async def _connect(self, stream: socket.socket, wanted: Address) -> None:
        try:
            async with asyncio.timeout(DIAL_S):
                remote = await self._dial(wanted)
        except TimeoutError:
            return await _answer(stream, "504 no connection in time")
        except OSError as error:
            number = error.errno or 0
            reason = os.strerror(number) if number > 0 else error.strerror  # a resolver's is below
            return await _answer(stream, f"502 {reason or type(error).__name__}")
        with remote:
            await _answer(stream, "200 OK")
            await self._relay(stream, remote, wanted)

    async def _dial(self, wanted: Address) -> socket.socket:
        """The first address of the host that answers. Raises OSError."""
        failure = OSError(0, "it has no address that may be used")
        listed = may_dial(wanted, self._listed)
        for family, address in await _resolve(wanted):
            if not may_reach(wanted, address, listed=listed):
                continue
            remote = socket.socket(family, socket.SOCK_STREAM)
            remote.setblocking(False)
            try:
                loop = asyncio.get_running_loop()
                async with asyncio.timeout(ADDRESS_S):
                    await loop.sock_connect(remote, (address, wanted.port))
                return remote
            except OSError as error:
                remote.close()
                failure = error
            except BaseException:
                remote.close()
                raise
        raise failure

    async def _relay(self, stream: socket.socket, remote: socket.socket, wanted: Address) -> None:
        """Until one side has ended; the other has what it sent by then."""
        traffic = self.traffic.setdefault(str(wanted), Traffic())
        self.host = str(wanted)

        def sent(count: int) -> None:
            traffic.sent += count

        def received(count: int) -> None:
            traffic.received += count
            self.on_bytes()

        ways = [
            self._scope.spawn(_move(stream, remote, sent), "pull proxy, outward"),
            self._scope.spawn(_move(remote, stream, received), "pull proxy, inward"),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ways:
                each.cancel()
            await asyncio.wait(ways)


async def _move(source: socket.socket, target: socket.socket, count: Callable[[int], None]) -> None:
    """Every byte, until there are no more. A broken connection is an end like another."""
    loop = asyncio.get_running_loop()
    with contextlib.suppress(OSError):
        while data := await loop.sock_recv(source, READ_BYTES):
            count(len(data))
            await loop.sock_sendall(target, data)


async def _read_request(stream: socket.socket) -> Address | None:
    """Byte by byte: what comes after it is not ours."""
    loop = asyncio.get_running_loop()
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(stream, 1)
        if not byte or len(head) > HEAD_BYTES:
            return None
        head += byte
    found = _CONNECT.match(head.decode("latin-1"))
    if not found or not 0 < int(found[2]) < 65536:
        return None
    return Address(found[1].lower(), int(found[2]))


async def _answer(stream: socket.socket, status: str) -> None:
    head = f"HTTP/1.1 {status}\r\n\r\n".encode("latin-1", "replace")
    await asyncio.get_running_loop().sock_sendall(stream, head)


async def _resolve(wanted: Address) -> list[tuple[int, str]]:
    """Families and addresses. The names of this machine are not asked of anybody."""
    if wanted.is_loopback:
        return [(socket.AF_INET, "127.0.0.1")]
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(wanted.host, wanted.port, type=socket.SOCK_STREAM)
    return [(family, str(address[0])) for family, _, _, _, address in found]
