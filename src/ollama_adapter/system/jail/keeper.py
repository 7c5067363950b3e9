"""The keeper: one small process per spawned daemon, so that no daemon outlives its application.

Run as a script with `-I -S`: it knows the standard library only. It leads the process group of the
daemon and of everything that one starts, drains the daemon's output into a bounded ring in memory, and
speaks with the application over a socket, a line of JSON per message. When that socket closes, or the
application's process ends, however it ended, the keeper kills the group and itself.

In:  {"argv", "env", "cwd", "parent"} once, with a "policy" or without, and with the numbers of descriptors
     that are "given" to the program; then {"do": "stop", "grace_s"}, {"do": "tail"} or
     {"do": "connect", "id"}
Out: {"event": "spawned", "pid", "level"} or {"event": "failed", "reason"}; {"event": "tail", "tail"};
     {"event": "exited", "returncode", "tail"} as the last line

With a policy the trampoline is spawned instead of the program (`jailed`), and the level is the policy's:
where it cannot be had, nothing is spawned. In namespaces the daemon has no port of ours: "connect" is
answered on a second socket, by datagrams: {"event": "connected", "id"} with the connected socket, or
{"event": "refused", "id", "reason"}.
"""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import Any

RING_BYTES = 64 << 10
READ_BYTES = 64 << 10
LINGER_S = 1.0  # for the application to read our last line; it kills us as soon as it has


class Keeper:
    """The loop that waits for the daemon, the application and the clock."""

    def __init__(self, control: socket.socket, sockets: socket.socket) -> None:
        self._control = control
        self._sockets = sockets
        self._jailed: Any = None
        self._selector = selectors.DefaultSelector()
        self._ring = bytearray()
        self._deadline: float | None = None
        self._inbox = b""
        self._daemon: subprocess.Popen[bytes] | None = None

    def run(self) -> None:
        """Spawn what the first line asks for, then keep it until it ends or nobody needs it."""
        wake = self._catch_signals()
        spec = self._read_spec()
        if spec is None or not self._spawn(spec):
            return
        self._selector.register(self._control, selectors.EVENT_READ, self._on_control)
        self._selector.register(wake, selectors.EVENT_READ, lambda: wake.recv(READ_BYTES))
        self._watch_parent(int(spec["parent"]))
        while self._daemon is not None and self._daemon.poll() is None:
            for key, _ in self._selector.select(self._timeout()):
                key.data()
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._daemon.kill()
                self._deadline = None
        self._report_exit()

    def _catch_signals(self) -> socket.socket:
        """The group's signals are for the daemon: handlers, since an ignored signal would be inherited."""
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # the application's mask is not for us
        wake, wakened = socket.socketpair()
        wake.setblocking(False)
        wakened.setblocking(False)
        signal.set_wakeup_fd(wakened.fileno(), warn_on_full_buffer=False)
        self._wakened = wakened
        for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(each, lambda *_: None)
        return wake

    def _read_spec(self) -> dict[str, Any] | None:
        while b"\n" not in self._inbox:
            data = self._control.recv(READ_BYTES)
            if not data:
                return None
            self._inbox += data
        line, _, self._inbox = self._inbox.partition(b"\n")
        spec: dict[str, Any] = json.loads(line)
        return spec

    def _spawn(self, spec: dict[str, Any]) -> bool:
        try:
            self._daemon = self._spawn_jailed(spec) if "policy" in spec else _spawn_plain(spec)
        except (OSError, ValueError) as error:  # the latter of a name with a zero byte
            reason = getattr(error, "strerror", None) or "it cannot be started"
            self._send({"event": "failed", "reason": reason})
            return False
        finally:
            for fd in spec.get("given", ()):
                os.close(fd)
        output = self._daemon.stdout
        assert output is not None
        os.set_blocking(output.fileno(), False)
        self._selector.register(output, selectors.EVENT_READ, self._drain)
        pid, level = self._daemon.pid, "none"
        if self._jailed is not None:
            self._jailed.register(self._selector)
            pid, level = self._jailed.pid, self._jailed.level
        self._send({"event": "spawned", "pid": pid, "level": level})
        return True

    def _spawn_jailed(self, spec: dict[str, Any]) -> subprocess.Popen[bytes]:
        from ollama_adapter.system.jail.jailed import Jailed

        self._jailed = Jailed(spec, self._sockets)
        process: subprocess.Popen[bytes] = self._jailed.start()
        return process

    def _watch_parent(self, parent: int) -> None:
        """A forked worker of the application may hold its socket open: watch the process too."""
        if os.getppid() != parent:
            self._leave()
        if hasattr(os, "pidfd_open"):
            try:
                self._selector.register(os.pidfd_open(parent), selectors.EVENT_READ, self._leave)
            except OSError:
                pass

    def _timeout(self) -> float | None:
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def _on_control(self) -> None:
        data = self._control.recv(READ_BYTES)
        if not data:
            self._leave()
        *lines, self._inbox = (self._inbox + data).split(b"\n")
        for line in lines:
            message = json.loads(line)
            if message["do"] == "stop":
                self._stop(time.monotonic() + float(message["grace_s"]))
            elif message["do"] == "tail":
                self._send({"event": "tail", "tail": self._tail()})
            elif message["do"] == "connect" and self._jailed is not None:
                self._jailed.connect(int(message["id"]))

    def _stop(self, deadline: float) -> None:
        """Asked again, the daemon is not interrupted while it cleans up; the shorter grace holds."""
        if self._deadline is None:
            os.killpg(0, signal.SIGTERM)
        self._deadline = min(deadline, self._deadline or deadline)

    def _drain(self) -> None:
        assert self._daemon is not None and self._daemon.stdout is not None
        try:
            data = os.read(self._daemon.stdout.fileno(), READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            self._selector.unregister(self._daemon.stdout)
        self._ring += data
        del self._ring[:-RING_BYTES]

    def _tail(self) -> str:
        return self._ring.decode("utf-8", "replace")

    def _report_exit(self) -> None:
        assert self._daemon is not None and self._daemon.stdout is not None
        if self._daemon.stdout in self._selector.get_map():
            self._drain()
        code: int | None = self._daemon.returncode
        if self._jailed is not None:
            code = self._jailed.final_code(code)
        self._send({"event": "exited", "returncode": code, "tail": self._tail()})
        self._linger()

    def _linger(self) -> None:
        """Were we gone when it sends an order, the application would get an error and not our line."""
        self._control.settimeout(LINGER_S)
        try:
            self._control.shutdown(socket.SHUT_WR)
            while self._control.recv(READ_BYTES):
                pass
        except OSError:
            pass

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._control.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            self._leave()

    def _leave(self) -> None:
        """End everything in the group, which is us and all that the daemon started."""
        os.killpg(0, signal.SIGKILL)


def _spawn_plain(spec: dict[str, Any]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        spec["argv"],
        env=spec["env"],
        cwd=spec["cwd"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        pass_fds=spec.get("given", ()),
    )


def find_siblings() -> None:
    """The package's own __init__ would load all of it: a package without one stands in."""
    package = type(sys)("ollama_adapter")
    here = os.path.abspath(__file__)
    package.__path__ = [os.path.dirname(os.path.dirname(os.path.dirname(here)))]
    sys.modules["ollama_adapter"] = package


def main() -> None:
    find_siblings()
    from ollama_adapter.system.jail import dumps

    dumps.forbid()
    control, sockets = (socket.socket(fileno=int(each)) for each in sys.argv[1:])
    for each in (control, sockets):
        each.set_inheritable(False)
    keeper = Keeper(control, sockets)
    try:
        keeper.run()
    finally:
        # What the daemon left behind, its runners for example, goes with it.
        os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
