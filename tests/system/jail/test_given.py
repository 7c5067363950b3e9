"""A program in a jail has what it is handed, and makes no socket where its policy has none."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import anyio
import pytest

from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope
from tests.system.jail import cells
from tests.system.jail.cells import policy

pytestmark = pytest.mark.anyio
LEVELS = cells.available()


@pytest.fixture
def own() -> Iterator[Path]:
    """A home for the program, where a user without rights can reach it."""
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        base = Path(name)
        base.chmod(0o755)
        home = base / "home"
        home.mkdir(mode=0o700)
        yield home


@pytest.fixture
async def owner() -> AsyncIterator[TaskScope]:
    async with cells.scope() as owner:
        yield owner


WITH_WHAT_IT_WAS_GIVEN = """
import os, socket, sys
given = socket.socket(fileno=int(sys.argv[2]))
data, fds, _, _ = socket.recv_fds(given, 64, 1)
os.write(fds[0], data.upper())
try:
    socket.socket()
    given.send(b"a socket")
except OSError as error:
    given.send(error.strerror.encode())
given.recv(1)
"""


@pytest.mark.parametrize("level", [*LEVELS, Level.NONE])
async def test_it_keeps_what_it_is_given_and_makes_no_socket_where_it_may_not(
    level: Level, own: Path, owner: TaskScope
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pipe = os.pipe()
    with ours, theirs, os.fdopen(pipe[0], "rb") as reading:
        argv = [cells.PYTHON, "-I", "-S", "-c", WITH_WHAT_IT_WAS_GIVEN, "0", str(theirs.fileno())]
        cell = policy(level, own, sockets=False)
        child = await spawn(argv, {"LANG": "C"}, "/", owner, cell, given=[theirs.fileno()])
        theirs.close()
        socket.send_fds(ours, [b"said"], [pipe[1]])
        os.close(pipe[1])
        await anyio.wait_readable(reading.fileno())
        assert os.read(reading.fileno(), 64) == b"SAID"
        await anyio.wait_readable(ours)
        assert ours.recv(64) == (b"a socket" if level is Level.NONE else b"Permission denied")
        await child.stop(10.0)
        await anyio.wait_readable(ours)
        assert ours.recv(64) == b"", "somebody else has kept it"
