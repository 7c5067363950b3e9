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
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final, Self

from ollama_adapter.errors import DaemonExited, DaemonNotFound, NotSandboxed
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.jail.passing import Doorway
from ollama_adapter.system.jail.policy import Level, Policy
from ollama_adapter.system.running import Exit
from ollama_adapter.system.scope import TaskScope, is_orphan

KEEPER: Final = Path(__file__).parent / "jail" / "keeper.py"
LINE_LIMIT: Final = 1 << 20
KILL_WAIT_S: Final = 2.0
DOORWAY: Final = socket.SOCK_SEQPACKET if sys.platform == "linux" else socket.SOCK_STREAM
"""Of what kind the sockets of the doorway are: only a jail uses it, and macOS knows no SOCK_SEQPACKET."""


class Child:
    """A daemon that runs. Made by `spawn`; `exited` completes when its whole group has gone."""

    def __init__(
        self,
        keeper: subprocess.Popen[bytes],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        sockets: socket.socket,
        policy: Policy | None = None,
    ) -> None:
        self._owner = os.getpid()
        self._keeper = keeper
        self._reader = reader
        self._writer = writer
        self._exit = Exit(None)
        self._doorway = Doorway(sockets, self._ask)
        self._policy = policy
        self.pid = 0
        self.level = Level.NONE  # in force, as its keeper says
        self.watcher: asyncio.Task[None] | None = None
        self.exited: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    def __repr__(self) -> str:
        return f"<Child pid {self.pid}{' ended' if self.exited.done() else ''}>"

    @property
    def jailed(self) -> bool:
        return self.level is not Level.NONE

    @property
    def sandbox(self) -> str:
        """The level in force, in words."""
        return self.level.words

    @property
    def group(self) -> int:
        """The process group of the daemon, its keeper and its runners."""
        return self._keeper.pid

    async def start(self, spec: Mapping[str, Any]) -> None:
        """Hand the keeper its order. Raises DaemonNotFound when the program cannot be started.

        And NotSandboxed where that, or its jail, cannot be in a jail; DaemonExited when the keeper has ended.
        """
        self._writer.write(_line(spec))
        line = b""
        with contextlib.suppress(OSError):  # killed with our order unread, it resets the connection
            line = await self._reader.readline()
        if not line:
            raise DaemonExited(f"{spec['argv'][0]} cannot be started: its keeper died")
        answer: dict[str, Any] = json.loads(line)
        if answer["event"] != "spawned":
            kind = DaemonNotFound if self._policy is None else NotSandboxed
            raise kind(f"{spec['argv'][0]} cannot be started: {answer['reason']}")
        self.pid = answer["pid"]
        self.level = Level(answer["level"])

    async def dial(self) -> socket.socket:
        """A non-blocking socket connected to the daemon. Raises ConnectFailed. Cancelling is safe."""
        if self.level is Level.NAMESPACES:
            return await self._doorway.dial()
        assert self._policy is not None, "without a policy the port is the caller's"
        return await dial_port(self._policy.ports[0])()

    def _ask(self, number: int) -> None:
        self._writer.write(_line({"do": "connect", "id": number}))

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
        if is_orphan(self.exited):
            self.kill()
            return self._exit
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
        """End the group at once and reap its leader. Idempotent; never waits long.

        A forked child of the application has a copy of us, and no right to end the daemon.
        """
        if os.getpid() != self._owner:
            return
        _end_group(self._keeper)
        with contextlib.suppress(RuntimeError):  # the event loop may be closed
            self._writer.close()
        self._doorway.close()


def _end_group(leader: subprocess.Popen[bytes]) -> None:
    if leader.returncode is None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader.pid, signal.SIGKILL)
        leader.wait()


class Keeper:
    """A keeper that waits for its order. Leaving a `with` ends one that was given none; twice is no harm."""

    def __init__(self, given: Sequence[int] = ()) -> None:
        """Raises DaemonNotFound. `given` are descriptors that it passes on."""
        self.control, control = socket.socketpair()
        self.sockets, sockets = socket.socketpair(socket.AF_UNIX, DOORWAY)
        fds = [control.fileno(), sockets.fileno()]
        self.taken = False
        with control, sockets:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-I", "-S", str(KEEPER), *map(str, fds)],
                    env={},
                    pass_fds=[*fds, *given],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,
                )
            except OSError as error:
                self.control.close()
                self.sockets.close()
                reason = error.strerror
                raise DaemonNotFound(f"no process can be started: {reason}") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.taken:
            self.control.close()
            self.sockets.close()
            _end_group(self.process)


async def spawn(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: str,
    scope: TaskScope,
    policy: Policy | None = None,
    *,
    given: Sequence[int] = (),
    keeper: Keeper | None = None,
) -> Child:
    """Start `argv` under a keeper of its own, in the jail of `policy`, with the descriptors `given`.

    These have the same numbers there; ours stay ours. `keeper` is one that has begun before, without any
    `given`; it serves once. Raises DaemonNotFound when it cannot be started, NotSandboxed when it, or its
    jail, cannot be, DaemonExited when its keeper has ended.
    """
    spec: dict[str, Any] = {"argv": list(argv), "env": dict(env), "cwd": cwd, "parent": os.getpid()}
    if given:
        spec["given"] = list(given)
    if policy is not None and policy.level is not Level.NONE:
        spec["policy"] = asdict(policy)
    with keeper or Keeper(given) as begun:
        streams = await asyncio.open_connection(sock=begun.control, limit=LINE_LIMIT)
        begun.taken = True
    child = Child(begun.process, *streams, begun.sockets, policy)
    try:
        await child.start(spec)
        child.watcher = scope.spawn(child.watch(), name="daemon output")
        child.watcher.add_done_callback(child.conclude)
    except BaseException:
        child.kill()
        raise
    return child


def _line(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message).encode() + b"\n"
