"""Programs for a jail, and the policies to run them with."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
from anyio.lowlevel import checkpoint

from ollama_adapter.errors import ConnectFailed, NotSandboxed
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.jail import JAIL_UID, levels
from ollama_adapter.system.jail.policy import Level, Policy
from ollama_adapter.system.process import Child, spawn
from ollama_adapter.system.scope import TaskScope
from tests.system.jail.grounds import ROOT

WATCHDOG_S = 60.0


def interpreter() -> str | None:
    """A Python that the daemon's user can run: root's may lie in root's home. See test_elsewhere.py."""
    identity: dict[str, Any] = {"user": JAIL_UID, "group": JAIL_UID, "extra_groups": []}
    command = ["-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
    for each in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [each, *command], cwd="/", check=False, **(identity if ROOT else {})
            )
            if done.returncode == 0:
                return each
    return None


PYTHON = interpreter() or sys.executable

SERVER = """
import json, os, socket, subprocess, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
pair = os.fork()
if pair == 0:
    import signal
    while True: signal.pause()
while True:
    visitor, _ = listener.accept()
    with visitor:
        names = ["Uid", "CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "SigIgn"]
        told = {"pid": os.getpid(), "uid": os.getuid(), "environ": dict(os.environ), "cwd": os.getcwd()}
        visitor.sendall(json.dumps(told).encode())
"""


def available() -> list[Level]:
    """The levels that can be tried with the program of these tests; the others are refused."""
    facts = levels.probe()
    found: list[Level] = []
    for level in (Level.NAMESPACES, Level.GUARD, Level.PARTIAL):
        without = tuple(each for each in Level if each not in (level, Level.NONE))
        try:
            decision = levels.decide(facts, "partial", without=without)
        except NotSandboxed:
            continue
        if decision.level is level and (level is Level.NAMESPACES or interpreter()):
            found.append(level)
    return found


def policy(level: Level, own: Path, **changes: Any) -> Policy:
    """Enough for a Python without packages."""
    libraries = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/local/lib", "/etc/ld.so.cache")
    prefix = str(Path(PYTHON).resolve().parents[1])
    paths = [*libraries, *([prefix] if prefix not in ("/", "/usr", "/usr/local") else [])]
    loaders = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
    base = Policy(
        level,
        read=tuple(each for each in paths if Path(each).exists()),
        write=(str(own),),
        execute=(PYTHON, *(each for each in loaders if Path(each).exists())),
        ports=(find_free_port(),),
        own=(str(own),),
        uid=JAIL_UID if ROOT else 0,
    )
    return replace(base, **changes)


@asynccontextmanager
async def scope() -> AsyncIterator[TaskScope]:
    owner = TaskScope()
    with anyio.fail_after(WATCHDOG_S):
        try:
            yield owner
        finally:
            await owner.aclose()


async def start(code: str, given: Policy, owner: TaskScope) -> Child:
    argv = [PYTHON, "-I", "-S", "-c", code, str(given.ports[0])]
    return await spawn(argv, {"LANG": "C"}, "/", owner, given)


async def answer_of(child: Child) -> dict[str, Any]:
    """What the server says to one connection, once it listens."""
    connection: socket.socket | None = None
    while connection is None:
        assert not child.exited.done(), child.exited.result().tail
        with contextlib.suppress(ConnectFailed):
            connection = await child.dial()
        await checkpoint()
    with connection:
        assert isinstance(connection, socket.socket)
        assert connection.getblocking() is False
        stream = b""
        while not stream.endswith(b"}"):
            await anyio.wait_readable(connection)
            stream += connection.recv(65536)
    told: dict[str, Any] = json.loads(stream)
    return told
