"""A spawned daemon as the application sees it: spawn through the keeper, wait, stop.

Whatever happens, no process is left behind: the keeper kills the group when we end, and we kill the
group when the keeper ends. The keeper leads the group and is reaped last, so its id stays ours.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from ollama_adapter.errors import DaemonNotFound
from ollama_adapter.system.scope import TaskScope

KEEPER: Final = Path(__file__).parent / "jail" / "keeper.py"
LINE_LIMIT: Final = 1 << 20
KILL_WAIT_S: Final = 2.0


@dataclass(frozen=True, slots=True)
class Exit:
    """How a daemon ended: its code (negative: by that signal; None: its keeper was killed)."""

    returncode: int | None
    tail: str = field(default="", repr=False)


class Child:
    """A daemon that runs. Made by `spawn`; `exited` completes when its whole group has gone."""

    def __init__(
        self,
        keeper: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        self._keeper = keeper
        self._reader = reader
        self._writer = writer
        self._exit = Exit(None)
        self.pid = 0
        self.watcher: asyncio.Task[None] | None = None
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Child pid {self.pid}{' ended' if self.exited.done() else ''}>"

    @property
    def group(self) -> int:
        """The process group of the daemon, its keeper and its runners."""
        return self._keeper.pid

    async def start(self, spec: Mapping[str, Any]) -> None:
        """Hand the keeper its order. Raises DaemonNotFound when the program cannot be started."""
        self._writer.write(_line(spec))
        line = await self._reader.readline()
        answer: dict[str, Any] = {"event": "failed", "reason": "its keeper died"}
        if line:
            answer = json.loads(line)
        if answer["event"] != "spawned":
            raise DaemonNotFound(f"{spec['argv'][0]} cannot be started: {answer['reason']}")
        self.pid = answer["pid"]

    async def watch(self) -> None:
        """Until the daemon or its keeper has ended; cancelling it ends both."""
        with contextlib.suppress(OSError, ValueError):
            while line := await self._reader.readline():
                message = json.loads(line)
                if message["event"] == "exited":
                    self._exit = Exit(message["returncode"], message["tail"])

    def conclude(self, _watcher: object) -> None:
        """The watch is over, or was cancelled before it began (its own code would not run then)."""
        self.kill()
        self.exited.set_result(self._exit)

    async def stop(self, grace_s: float) -> Exit:
        """SIGTERM to the group, SIGKILL after `grace_s`; never leaves a process behind."""
        try:
            with contextlib.suppress(OSError):
                self._writer.write(_line({"do": "stop", "grace_s": grace_s}))
            async with asyncio.timeout(grace_s + KILL_WAIT_S):
                return await asyncio.shield(self.exited)
        except TimeoutError:
            return Exit(None)
        finally:
            self.kill()

    def kill(self) -> None:
        """End the group at once and reap its leader. Idempotent; never waits long."""
        _end_group(self._keeper)
        self._writer.close()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


async def spawn(argv: Sequence[str], env: Mapping[str, str], cwd: str, scope: TaskScope) -> Child:
    """Start `argv` under a keeper of its own. Raises DaemonNotFound when it cannot be started."""
    keeper, control = _start_keeper()
    try:
        streams = await asyncio.open_connection(sock=control, limit=LINE_LIMIT)
    except BaseException:
        control.close()
        _end_group(keeper)
        raise
    child = Child(keeper, *streams)
    try:
        await child.start({"argv": list(argv), "env": dict(env), "cwd": cwd, "parent": os.getpid()})
        child.watcher = scope.spawn(child.watch(), name="daemon output")
        child.watcher.add_done_callback(child.conclude)
    except BaseException:
        child.kill()
        raise
    return child


def _start_keeper() -> tuple[subprocess.Popen[bytes], socket.socket]:
    """A keeper that waits for its order, and our end of the socket to it."""
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            keeper = subprocess.Popen(
                [sys.executable, "-I", "-S", str(KEEPER), str(theirs.fileno())],
                env={},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise DaemonNotFound(f"no process can be started: {error.strerror}") from error
    return keeper, ours


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
