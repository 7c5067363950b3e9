"""The jailed process of one pull, as the application sees it: orders in, what has come out.

It is started in the best jail that holds (docs/jail.md); one without sockets needs no guard. Each stream to
the proxy is handed to it through its door. What it says is checked as if a stranger had sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.config import Sandbox
from ollama_adapter.core.registry import MANIFEST_TYPE, MAX_MANIFEST_BYTES, Blob, Source
from ollama_adapter.errors import NotSandboxed
from ollama_adapter.puller.proxy import Proxy
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.paths import puller_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import Child, spawn
from ollama_adapter.system.scope import TaskScope

SCRIPT: Final = Path(__file__).with_name("fetching.py")
MESSAGE_BYTES: Final = 1 << 14
MANIFEST_FILE: Final = "manifest"
SILENCE: Final = (
    4  # it may be silent for so many times as long as the registry: it asks, waits, writes
)
SPARE_S: Final = 30.0
WORDS: Final = {
    Level.NAMESPACES: "namespaces",
    Level.PARTIAL: "no socket of its own",
    Level.NONE: "none",
}

log = logging.getLogger("ollama_adapter")


class FetchFailed(Exception):
    """An order was not carried out; `again`: another try may help."""

    def __init__(self, kind: str, reason: str, *, again: bool) -> None:
        super().__init__(reason)
        self.kind = kind
        self.again = again


class _Message(msgspec.Struct):
    event: str
    done: int = 0
    kind: str = ""
    reason: str = ""
    again: bool = False


class Terms(msgspec.Struct, frozen=True):
    """What an errand is sent with."""

    source: Source
    directory: Path
    cafile: str
    stall_s: float
    agent: str
    sandbox: Sandbox
    script: Path = SCRIPT


class Errand:
    """Made by `begin`; `aclose` when nothing more is wanted: nobody writes into the directory after it."""

    def __init__(self, child: Child, door: socket.socket, proxy: Proxy, terms: Terms) -> None:
        self._child = child
        self._door = door
        self._proxy = proxy
        self._terms = terms
        self.sandbox = WORDS.get(child.level, child.level.words)

    def __repr__(self) -> str:
        return f"<Errand {self._child!r}, {self.sandbox}>"

    @property
    def pid(self) -> int:
        return self._child.pid

    @classmethod
    async def begin(cls, terms: Terms, proxy: Proxy, scope: TaskScope) -> Errand:
        """Raises NotSandboxed, DaemonNotFound where no process can be started."""
        door, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        door.setblocking(False)
        try:
            with its:
                child = await _spawn(terms, its, scope)
        except BaseException:
            door.close()
            raise
        errand = cls(child, door, proxy, terms)
        source = terms.source
        errand._send(
            do="begin",
            tls=source.tls,
            host=source.address.host,
            port=source.address.port,
            cafile=terms.cafile,
            stall_s=terms.stall_s,
            agent=terms.agent,
        )
        return errand

    async def fetch_manifest(self) -> None:
        """Into the file `manifest` of the directory. Raises FetchFailed."""
        path = self._terms.source.manifest_path
        await self._carry_out(
            lambda _: None,
            do="manifest",
            path=path,
            accept=MANIFEST_TYPE,
            file=MANIFEST_FILE,
            limit=MAX_MANIFEST_BYTES,
        )

    async def fetch(
        self, blob: Blob, offset: int, step: int, on_done: Callable[[int], None]
    ) -> None:
        """The rest of a blob, from `offset` on; `on_done` is told how much of it is there.

        Raises FetchFailed: what has come until then stays. After a cancellation only `aclose` is left.
        """
        path = self._terms.source.blob_path(blob.digest)
        about = {"path": path, "file": blob.file, "offset": offset, "size": blob.size, "step": step}
        await self._carry_out(lambda done: on_done(min(done, blob.size)), do="blob", **about)

    async def aclose(self) -> None:
        """Until its whole group has gone. Idempotent."""
        self._child.kill()
        self._door.close()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(self._child.exited)

    async def _carry_out(self, on_done: Callable[[int], None], **order: Any) -> None:
        self._send(**order)
        while True:
            message = await self._receive()
            if message.event == "dial":
                self._hand_over(self._proxy.stream())
            elif message.event == "progress":
                on_done(message.done)
            elif message.event == "failed":
                raise FetchFailed(message.kind, message.reason[:200], again=message.again)
            else:
                return

    async def _receive(self) -> _Message:
        try:
            async with asyncio.timeout(SILENCE * self._terms.stall_s + SPARE_S):
                data = await asyncio.get_running_loop().sock_recv(self._door, MESSAGE_BYTES)
            if data:
                return msgspec.json.decode(data, type=_Message)
        except TimeoutError:  # it watches for stalls itself, if it is what it was
            self._child.kill()
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._child.kill()  # what speaks like that is not ours any more
        raise FetchFailed("ended", "the process that fetches has ended", again=True)

    def _send(self, **message: Any) -> None:
        with contextlib.suppress(OSError):  # it has ended, as the next answer will tell
            self._door.send(msgspec.json.encode(message))

    def _hand_over(self, stream: socket.socket) -> None:
        with stream, contextlib.suppress(OSError):
            socket.send_fds(self._door, [b"{}"], [stream.fileno()])


async def _spawn(terms: Terms, door: socket.socket, scope: TaskScope) -> Child:
    script = str(terms.script)
    argv = [sys.executable, "-I", "-S", "-B", script, str(door.fileno())]
    environment = {"LANG": "C.UTF-8"}
    directory = str(terms.directory)
    if terms.sandbox is Sandbox.NONE:
        return await spawn(argv, environment, directory, scope, given=[door.fileno()])
    facts = await asyncio.get_running_loop().run_in_executor(None, levels.probe)
    failed: tuple[Level, ...] = ()
    refusal: NotSandboxed | None = None
    while True:
        try:
            wish = terms.sandbox.value
            level = levels.decide(facts, wish, without=failed, sockets=False).level
        except NotSandboxed as error:
            raise refusal or error from None
        policy = puller_policy(level, script, staging=directory, cafile=terms.cafile)
        try:
            return await spawn(argv, environment, directory, scope, policy, given=[door.fileno()])
        except NotSandboxed as error:
            log.warning("the puller cannot be started at level %s", level)
            refusal = refusal or error
            failed = (*failed, level)
