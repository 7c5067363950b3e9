"""How the daemon gets the process of a runner: by an order to its starter, or by itself.

On Linux the front gives up the right to start programs and to open sockets (serve.py), so a starter
(starter.py) does both for it: an order brings a runner, or a socket that is connected to one. When the
starter ends, nothing can be served any more: the front ends at once. Elsewhere a runner is a plain
child, and the front connects by itself. Whoever gets a process must see to its end: `kill`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec

from ollama_adapter.embedded import starter
from ollama_adapter.errors import ConnectFailed
from ollama_adapter.system.dialing import dial_port

READ_BYTES: Final = 1 << 16


class Process(Protocol):
    """A runner's process, however it was started."""

    @property
    def pid(self) -> int: ...
    @property
    def log(self) -> asyncio.StreamReader: ...
    @property
    def returncode(self) -> int | None: ...
    async def tell(self, line: bytes) -> None: ...
    async def report(self) -> bytes: ...
    async def wait(self) -> int: ...
    def kill(self) -> None: ...
    async def dial(self, port: int) -> socket.socket: ...


Start = Callable[[str], Awaitable[Process]]
"""Starts a runner for the model file of this name, by which it is known. Raises OSError."""


class Plain:
    """A child of ours."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        self._process = process
        self.log: asyncio.StreamReader = process.stderr

    @classmethod
    async def start(cls, name: str = "", command: list[str] | None = None) -> Process:
        process = await asyncio.create_subprocess_exec(
            *(command or starter.runner_command()),
            *filter(None, [name]),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=starter.runner_environment(),
        )
        return cls(process)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    async def tell(self, line: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(line)
            await self._process.stdin.drain()

    async def report(self) -> bytes:
        assert self._process.stdout is not None
        return await self._process.stdout.readline()

    async def wait(self) -> int:
        return await self._process.wait()

    def kill(self) -> None:
        """Safe at any time. (Process.kill would wait for it, and race with its watcher.)"""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)

    async def dial(self, port: int) -> socket.socket:
        return await dial_port(port)()


class Ordered:
    """A child of the starter's. Its input stays open as long as it may live: it ends with that."""

    def __init__(self, orders: Orders, number: int) -> None:
        loop = asyncio.get_running_loop()
        self._orders = orders
        self._number = number
        self._input = self._log = -1
        self.pid = 0
        self.log = asyncio.StreamReader()
        self.begun: asyncio.Future[None] = loop.create_future()
        self.reported: asyncio.Future[bytes] = loop.create_future()
        self.ended: asyncio.Future[int] = loop.create_future()

    @property
    def returncode(self) -> int | None:
        return self.ended.result() if self.ended.done() else None

    async def tell(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # shorter than what a pipe takes at once
            os.write(self._input, line)

    async def report(self) -> bytes:
        return await asyncio.shield(self.reported)

    async def wait(self) -> int:
        return await asyncio.shield(self.ended)

    def kill(self) -> None:
        """Safe at any time; for one that has not begun, too."""
        if not self.ended.done():
            self._orders.send({"do": "kill", "id": self._number})

    async def dial(self, _port: int) -> socket.socket:
        return await self._orders.dial(self._number)

    # What the starter tells

    def on_started(self, pid: int, input_: int, log: int) -> None:
        self.pid, self._input, self._log = pid, input_, log
        os.set_blocking(log, False)
        asyncio.get_running_loop().add_reader(log, self._on_log)
        self.begun.set_result(None)

    def on_failed(self, reason: str) -> None:
        self.begun.set_exception(OSError(reason))
        self.begun.exception()  # whoever awaits it is told; nobody need
        self.reported.set_result(b"")
        self.ended.set_result(127)

    def _on_log(self) -> None:
        try:
            data = os.read(self._log, READ_BYTES)
        except BlockingIOError:
            return
        if data:
            self.log.feed_data(data)
            return
        asyncio.get_running_loop().remove_reader(self._log)
        os.close(self._log)
        self.log.feed_eof()

    def on_ended(self, code: int) -> None:
        if self._input >= 0:
            os.close(self._input)
            self._input = -1
        self.ended.set_result(code)


class Orders:
    """The front's end of a starter that has begun (`starter.begin`); `attach` joins it to the loop."""

    def __init__(self, channel: socket.socket, starter_: subprocess.Popen[bytes]) -> None:
        self._channel = channel
        self._starter = starter_
        self._unsent: deque[bytes] = deque()
        self._numbers = 0
        self._processes: dict[int, Ordered] = {}
        self._calls: dict[int, asyncio.Future[socket.socket]] = {}

    def attach(self, on_end: Callable[[], None]) -> None:
        """From now on its messages are read; `on_end` when there will be no more of them."""
        self._channel.setblocking(False)
        asyncio.get_running_loop().add_reader(self._channel, self._on_message, on_end)

    @property
    def pid(self) -> int:
        return self._starter.pid

    def close(self) -> None:
        """The starter and all its runners end; returns when the starter has."""
        asyncio.get_running_loop().remove_reader(self._channel)
        asyncio.get_running_loop().remove_writer(self._channel)
        self._channel.close()
        self._starter.wait()

    async def start(self, _name: str = "") -> Process:
        """A new runner, which takes its name by itself. Raises OSError; cancelling ends it."""
        self._numbers += 1
        process = self._processes[self._numbers] = Ordered(self, self._numbers)
        self.send({"do": "start", "id": self._numbers})
        try:
            await asyncio.shield(process.begun)
        except BaseException:
            process.kill()
            raise
        return process

    async def dial(self, number: int) -> socket.socket:
        """A socket connected to a runner. Raises ConnectFailed; cancelling is safe."""
        self._numbers += 1
        call = self._numbers
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._calls[call] = answer
        self.send({"do": "dial", "id": number, "call": call})
        try:
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            del self._calls[call]

    def send(self, order: dict[str, Any]) -> None:
        """Never waits, and loses none while the starter lives."""
        self._unsent.append(msgspec.json.encode(order))
        self._flush()

    def _flush(self) -> None:
        """As many as the starter takes; the rest when it has read some."""
        loop = asyncio.get_running_loop()
        try:
            loop.remove_writer(self._channel)
            while self._unsent:
                self._channel.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            loop.add_writer(self._channel, self._flush)
        except (OSError, ValueError):  # it has ended, and so do we, by what `attach` was told
            self._unsent.clear()

    def _on_message(self, on_end: Callable[[], None]) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, starter.MESSAGE_BYTES, 2)
        except BlockingIOError:
            return None
        except OSError:
            data, fds = b"", []
        if not data:
            asyncio.get_running_loop().remove_reader(self._channel)
            return on_end()
        message: dict[str, Any] = msgspec.json.decode(data)
        if message["event"] == "dialed":
            self._on_dialed(message["call"], fds)
        else:
            self._on_news(message, fds)

    def _on_news(self, message: dict[str, Any], fds: list[int]) -> None:
        process, event = self._processes[message["id"]], message["event"]
        if event == "started":
            process.on_started(message["pid"], *fds)
        elif event == "reported":
            process.reported.set_result(message["line"].encode())
        elif event == "failed":
            process.on_failed(message["reason"])
        else:
            process.on_ended(message["code"])
        if process.ended.done() and process.reported.done():
            del self._processes[message["id"]]

    def _on_dialed(self, call: int, fds: list[int]) -> None:
        answer = self._calls.get(call)
        if not fds:
            if answer is not None and not answer.done():
                answer.set_exception(ConnectFailed("the runner has ended"))
            return
        connection = socket.socket(fileno=fds[0])
        connection.setblocking(False)
        if answer is None or answer.done():  # whoever asked has gone
            connection.close()
        else:
            answer.set_result(connection)
