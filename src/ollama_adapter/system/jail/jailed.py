"""The keeper's part of a jail: starts the trampoline, runs the guard, passes sockets on.

It holds one end of a socket to the trampoline, later to process 1 of the namespaces. A message is a datagram
of words, with at most one descriptor. The sender's process number comes with them, told by
the kernel in our own numbering.
"""

from __future__ import annotations

import array
import json
import marshal
import os
import selectors
import socket
import struct
import subprocess
import sys

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    from typing import Any

TRAMPOLINE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "trampoline.py")
MESSAGE_BYTES = 64 << 10
START_S = 10.0
CREDENTIALS = struct.Struct("=iII")


class Jailed:
    """One daemon in a jail. `sockets` leads to the application."""

    def __init__(self, spec: dict[str, Any], sockets: socket.socket) -> None:
        self._spec = spec
        self._sockets = sockets
        self._selector: selectors.BaseSelector | None = None
        self._guard: Any = None
        self.level: str = spec["policy"]["level"]
        self.pid = 0
        self.returncode: int | None = None  # of the daemon, where the trampoline waits outside
        ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        ours.settimeout(START_S)
        self._trampoline = ours

    def start(self) -> subprocess.Popen[bytes]:
        """The trampoline, once it is the daemon or its namespaces are. Raises OSError with the reason."""
        fds = [self._theirs.fileno(), *self._spec.get("given", ())]
        with self._theirs:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", TRAMPOLINE, *map(str, fds)],
                env={},
                pass_fds=fds,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self.pid = process.pid
        try:
            self._hand_over(process)
            self._await_start()
        except OSError:
            process.kill()
            process.wait()
            raise
        return process

    def _hand_over(self, process: subprocess.Popen[bytes]) -> None:
        order = {**self._spec, "keeper": os.getpid()}
        assert process.stdin is not None
        with process.stdin:
            process.stdin.write(marshal.dumps(order))

    def _await_start(self) -> None:
        """Until its program runs: outside namespaces, the end of the socket says so."""
        while True:
            event, words, sender, fds = self._receive()
            if event == "failed":
                raise OSError(1, words)
            if event == "guarded":
                from ollama_adapter.system.jail import confine
                from ollama_adapter.system.jail.guard import Guard

                # whoever looks into the daemon must be its user: root in a container may not
                confine.leave_root(self._spec["policy"]["uid"])
                self._guard = Guard(fds.pop())
            elif event == "starting":
                self.pid = sender
            elif event == "started":
                return
            elif self.level == "namespaces":
                raise OSError(1, "the jail ended while it was made")
            else:
                self._trampoline.close()
                return

    def _receive(self) -> tuple[str, str, int, list[int]]:
        """An event ("" at the end) and its words, the process that sent it, and its descriptors."""
        room = socket.CMSG_SPACE(CREDENTIALS.size) + socket.CMSG_SPACE(4)
        data, ancillary, _, _ = self._trampoline.recvmsg(MESSAGE_BYTES, room)
        sender, fds = 0, array.array("i")
        for level, kind, content in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = CREDENTIALS.unpack(content)[0]
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
        event, _, words = data.decode().partition(" ")
        return event, words, sender, list(fds)

    # While it runs

    def register(self, selector: selectors.BaseSelector) -> None:
        """Wait with the keeper's loop from now on."""
        self._selector = selector
        if self._guard is not None:
            selector.register(self._guard, selectors.EVENT_READ, self._on_question)
        if self.level == "namespaces":
            self._trampoline.setblocking(False)
            selector.register(self._trampoline, selectors.EVENT_READ, self.on_message)

    def connect(self, number: int) -> None:
        """Ask process 1 for a socket that is connected inside."""
        try:
            self._trampoline.send(str(number).encode())
        except OSError:
            self._pass_on({"event": "refused", "id": number, "reason": "the daemon has ended"})

    def on_message(self) -> None:
        try:
            event, words, _, fds = self._receive()
        except OSError:
            return
        number, _, reason = words.partition(" ")
        if not event:
            self._leave(self._trampoline)
        elif event == "ended":
            self.returncode = int(number)
        elif event == "connected":
            self._pass_on({"event": event, "id": int(number)}, *fds)
        elif event == "refused":
            self._pass_on({"event": event, "id": int(number), "reason": reason})
        for fd in fds:
            os.close(fd)

    def final_code(self, code: int | None) -> int | None:
        """How the daemon ended: process 1 has told, if it could; else as the trampoline did."""
        if self.level == "namespaces" and self.returncode is None:
            self.on_message()
        if self.returncode is not None:
            return self.returncode
        return -9 if self.level == "namespaces" else code

    def _pass_on(self, message: dict[str, Any], *fds: int) -> None:
        """A refusal with its reason, or a socket. If nobody listens any more, the socket is closed."""
        try:
            socket.send_fds(self._sockets, [json.dumps(message).encode()], list(fds))
        except OSError:
            pass

    def _on_question(self) -> None:
        assert self._guard is not None
        if not self._guard.answer():
            self._leave(self._guard)

    def _leave(self, which: Any) -> None:
        if self._selector is not None and which in self._selector.get_map():
            self._selector.unregister(which)
