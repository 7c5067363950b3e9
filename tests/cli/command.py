"""The installed command as a process of its own, on a home of its own; in a pipe, or in a terminal."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.cli.screen import Screen

WATCHDOG_S = 60.0
KEPT = ("PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")
COMMAND = (sys.executable, "-m", "ollama_adapter")
FORKSERVER = Path(__file__).with_name("forkserver.py")
FORKED = ("OLLAMA_", "XDG_", "PATH")
"""How variables begin that are read by the command alone, not by Python or a library as it starts."""
PIPE_BYTES = 65_536
IN_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Done:
    """What a command left."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Machine:
    """Where commands run: nothing of the developer's own reaches them."""

    home: Path
    port: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    server: ForkServer | None = None

    @property
    def whole_environment(self) -> dict[str, str]:
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        ours = {"HOME": str(self.home), "LANG": "C.UTF-8", "TERM": "xterm-256color"}
        if self.port:
            ours["OLLAMA_HOST"] = f"127.0.0.1:{self.port}"
            ours["OLLAMA_ADAPTER_DAEMON_MODE"] = "adopt"
        return kept | ours | self.environment

    async def start(
        self, *arguments: str | bytes, out: int = subprocess.PIPE
    ) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *COMMAND,
            *arguments,
            env=self.whole_environment,
            cwd=self.home,
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=subprocess.PIPE,
        )

    async def run(self, *arguments: str | bytes, stdin: bytes = b"") -> Done:
        """To its end: as a fork, where that makes no difference; for its help, from the start."""
        plain = all(each.startswith(FORKED) for each in self.environment)
        if self.server and plain and "--help" not in arguments and len(stdin) <= PIPE_BYTES:
            order = {
                "arguments": [os.fsdecode(each) for each in arguments],
                "environment": self.whole_environment,
                "directory": str(self.home),
            }
            async with asyncio.timeout(WATCHDOG_S):
                return await self.server.run(order, stdin)
        process = await self.start(*arguments)
        return await finish(process, stdin)

    @asynccontextmanager
    async def terminal(
        self, *arguments: str, width: int = 80, height: int = 24
    ) -> AsyncIterator[Terminal]:
        """The command in a terminal, which is killed if it still runs at the end."""
        master, slave = os.openpty()
        terminal = Terminal(master, Screen(width, height))
        terminal.resize(width, height)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", IN_TERMINAL, *COMMAND, *arguments),
            env=self.whole_environment,
            cwd=self.home,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        terminal.process = process
        terminal.slave = slave
        try:
            yield terminal
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
            os.close(slave)
            os.close(master)


class ForkServer:
    """One for many commands; see forkserver.py."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, str(FORKSERVER), str(theirs.fileno())],
                env=Machine(Path("/")).whole_environment,
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,  # like those of a command: Python's files are made for them
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._control.close()
        said = self._process.communicate(timeout=WATCHDOG_S)[1]
        assert (self._process.returncode, said) == (0, b"")

    async def run(self, order: dict[str, Any], stdin: bytes) -> Done:
        """What the command left; killed if this is cancelled."""
        ours, theirs = socket.socketpair()
        (input_, to), (out, output), (err, errors) = (os.pipe() for _ in range(3))
        os.write(to, stdin)  # there is room for all of it
        os.close(to)
        socket.send_fds(self._control, [b"1"], [input_, output, errors, theirs.fileno()])
        theirs.close()
        for each in (input_, output, errors):
            os.close(each)
        with ours:
            ours.sendall(json.dumps(order).encode() + b"\n")
            ours.setblocking(False)
            said = await asyncio.gather(read_all(out), read_all(err))
            code = await asyncio.get_running_loop().sock_recv(ours, 16)
        return Done(int(code), *(each.decode() for each in said))


async def read_all(descriptor: int) -> bytes:
    """What comes through a pipe until its end; the pipe is closed."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb", 0)
    )
    try:
        return await reader.read()
    finally:
        transport.close()


async def finish(process: asyncio.subprocess.Process, stdin: bytes = b"") -> Done:
    """What it left when it ended by itself."""
    try:
        async with asyncio.timeout(WATCHDOG_S):
            out, err = await process.communicate(stdin)
    except TimeoutError:
        process.kill()
        raise
    assert process.returncode is not None
    return Done(process.returncode, (out or b"").decode(), (err or b"").decode())


class Terminal:
    """A screen, a keyboard and a process."""

    process: asyncio.subprocess.Process
    slave: int

    def __init__(self, master: int, screen: Screen) -> None:
        self._master = master
        self.screen = screen
        self.raw = b""
        os.set_blocking(master, False)

    def resize(self, width: int, height: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def echoes(self) -> bool:
        """What is typed is shown."""
        return bool(termios.tcgetattr(self.slave)[3] & termios.ECHO)

    async def until(self, text: str) -> None:
        """Until the screen shows `text`."""
        async with asyncio.timeout(WATCHDOG_S):
            while text not in self.screen.text:
                assert await self._read(), f"{text!r} was not shown: {self.screen.text}"

    async def ended(self) -> int:
        """Until the process has ended; its code."""
        async with asyncio.timeout(WATCHDOG_S):
            code = await self.process.wait()
            while await self._read(wait=False):
                pass
        return code

    async def _read(self, *, wait: bool = True) -> bool:
        """Feed the screen what there is."""
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        if wait:
            loop.add_reader(self._master, ready.set)
            try:
                await ready.wait()
            finally:
                loop.remove_reader(self._master)
        try:
            data = os.read(self._master, 1 << 16)
        except OSError:  # nothing there, or the other side is closed
            return False
        self.raw += data
        self.screen.feed(data)
        return bool(data)


def interrupt(process: asyncio.subprocess.Process, number: signal.Signals = signal.SIGINT) -> None:
    process.send_signal(number)
