"""Starts the runners, so that the daemon's front, which sees prompts, need not be able to start anything.

A small process, run by its path with `-I -S`; the front begins it (`begin`) before anything else. It knows
one program and one environment: an order says when, never what. It sees no prompt and no key: the front tells
a runner its settings through a pipe that it is handed. When the front ends, so do this process and all
runners; when this process ends, the kernel ends the runners, and the front ends itself.

One runner is started before there is an order: it loads the engine while the front is still beginning,
and the first model is in memory that much sooner.

In:  {"do": "start", "id"}, {"do": "kill", "id"}, {"do": "dial", "id", "call"}
Out: {"event": "started", "id", "pid"} with two descriptors, the runner's input and its log, or
     {"event": "failed", "id", "reason"}; {"event": "reported", "id", "line"}; {"event": "ended", "id",
     "code"}; {"event": "dialed", "call"} with a socket that is connected to the runner, or without one
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import selectors
import signal
import socket
import sys

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    import subprocess
    from typing import Any, NoReturn

MESSAGE_BYTES = 1 << 16
LINE_BYTES = 1 << 14  # of a report, which is a port or a reason
REPORT_BYTES = 1 << 13  # of it that are passed on: in JSON a byte that is no text takes six
NAME_LENGTH = 200
PLACE_FOR_A_NAME = " " * NAME_LENGTH  # the last argument of a runner: there it writes its model's
PLACE_OF_ONE_ORDERED = "-".ljust(NAME_LENGTH)  # it counts before it has a name (system/runners.py)
CONNECT_S = 2.0
SPARE = 0  # the number of a runner that nobody has ordered yet
PASSED_ON = (
    *("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "SYSTEMROOT", "LD_LIBRARY_PATH", "VIRTUAL_ENV"),
    *("PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "CUDA_VISIBLE_DEVICES"),
)
_SET_PDEATHSIG = 1


def begin(*command: str) -> tuple[socket.socket, subprocess.Popen[bytes]] | None:
    """For the front: the channel to a starter, and its process. `command`: another runner's, for a test.

    None on a system where the front keeps its rights. Raises OSError.
    """
    if sys.platform != "linux":
        return None
    import subprocess

    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    argv = [sys.executable, "-I", "-S", os.path.abspath(__file__), str(its.fileno()), *command]
    with its:
        process = subprocess.Popen(argv, pass_fds=[its.fileno()], stdin=subprocess.DEVNULL)
    return ours, process


def runner_command() -> list[str]:
    """By its path: the package need not be imported."""
    here = os.path.dirname(os.path.abspath(__file__))
    return [sys.executable, "-P", os.path.join(here, "runner.py")]


def runner_environment() -> dict[str, str]:
    """All that a runner gets of ours."""
    return {name: os.environ[name] for name in PASSED_ON if name in os.environ}


class Starter:
    """The loop that waits for orders, for reports, and for the ends of runners."""

    def __init__(self, control: socket.socket, argv: list[str]) -> None:
        self._control = control
        self._argv = argv
        self._libc = ctypes.CDLL(None)
        self._selector = selectors.DefaultSelector()
        self._pids: dict[int, int] = {}  # of the runners that have not been reaped, by their ids
        self._ports: dict[int, int] = {}
        self._spare: tuple[int, int, int, int] | None = None  # as `_fork` gives it

    def run(self) -> NoReturn:
        """Until the front ends."""
        wake = self._catch_signals()
        with contextlib.suppress(OSError):  # the first order will try again
            self._spare = self._fork(PLACE_FOR_A_NAME)
            self._pids[SPARE] = self._spare[0]
        self._selector.register(self._control, selectors.EVENT_READ, self._on_order)
        self._selector.register(wake, selectors.EVENT_READ, lambda: self._reap(wake))
        while True:
            for key, _ in self._selector.select():
                key.data()

    def _catch_signals(self) -> int:
        """The group's signals are for the front: handlers, since an ignored signal would be inherited."""
        wake, wakened = os.pipe()
        os.set_blocking(wakened, False)
        signal.set_wakeup_fd(wakened, warn_on_full_buffer=False)
        for each in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(each, lambda *_: None)
        return wake

    def _on_order(self) -> None:
        try:
            data = self._control.recv(MESSAGE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._leave()
        order: dict[str, Any] = json.loads(data)
        number = int(order["id"])
        if order["do"] == "start":
            self._start(number)
        elif order["do"] == "kill" and number in self._pids:
            os.kill(self._pids[number], signal.SIGKILL)
        elif order["do"] == "dial":
            self._dial(number, int(order["call"]))

    def _start(self, number: int) -> None:
        try:
            pid, settings, report, log = self._spare or self._fork(PLACE_OF_ONE_ORDERED)
        except OSError as error:
            return self._send({"event": "failed", "id": number, "reason": error.strerror})
        self._spare = None
        self._pids.pop(SPARE, None)
        self._pids[number] = pid
        self._send({"event": "started", "id": number, "pid": pid}, settings, log)
        _close([settings, log])
        line = bytearray()
        self._selector.register(
            report, selectors.EVENT_READ, lambda: self._on_report(number, report, line)
        )

    def _fork(self, place: str) -> tuple[int, int, int, int]:
        """A runner that waits for its settings: its pid, our ends of its input, its report and its log."""
        pipes: list[int] = []
        try:
            for _ in range(3):
                pipes += os.pipe()
            starter, pid = os.getpid(), os.fork()
        except OSError:
            _close(pipes)
            raise
        its_input, settings, report, its_report, log, its_log = pipes
        if pid == 0:
            self._become_runner(starter, place, its_input, its_report, its_log)
        _close([its_input, its_report, its_log])
        return pid, settings, report, log

    def _become_runner(self, starter: int, place: str, *ends: int) -> NoReturn:
        try:
            self._libc.prctl(_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            if os.getppid() != starter:  # it has ended before that was said
                os._exit(1)
            for target, each in enumerate(ends):
                os.dup2(each, target)
            os.execve(self._argv[0], [*self._argv, place], runner_environment())
        finally:
            os._exit(127)

    def _on_report(self, number: int, report: int, line: bytearray) -> None:
        """Its first line. What a library may print after that is for nobody."""
        data = os.read(report, LINE_BYTES)
        line += data
        if data and b"\n" not in data and len(line) < LINE_BYTES:
            return
        self._selector.unregister(report)
        os.close(report)
        text = line[:REPORT_BYTES].partition(b"\n")[0].decode("utf-8", "replace")
        try:
            self._ports[number] = int(json.loads(text)["port"])
        except (ValueError, TypeError, KeyError, RecursionError):
            pass  # it tells a reason, and will end
        self._send({"event": "reported", "id": number, "line": text})

    def _dial(self, number: int, call: int) -> None:
        """To this runner and nowhere else: an order names no address."""
        answer = {"event": "dialed", "call": call}
        with socket.socket() as connection:
            try:
                connection.settimeout(CONNECT_S)
                connection.connect(("127.0.0.1", self._ports[number]))
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            except (OSError, KeyError):
                return self._send(answer)
            self._send(answer, connection.fileno())

    def _reap(self, wake: int) -> None:
        os.read(wake, MESSAGE_BYTES)
        for number, pid in list(self._pids.items()):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                del self._pids[number]
                self._ports.pop(number, None)
                if number == SPARE and self._spare is not None:
                    _close(list(self._spare[1:]))
                    self._spare = None
                    continue
                code = os.waitstatus_to_exitcode(status)
                self._send({"event": "ended", "id": number, "code": code})

    def _send(self, message: dict[str, Any], *descriptors: int) -> None:
        try:
            socket.send_fds(self._control, [json.dumps(message).encode()], descriptors)
        except OSError:
            self._leave()

    def _leave(self) -> NoReturn:
        for pid in self._pids.values():
            os.kill(pid, signal.SIGKILL)
        os._exit(0)


def _close(descriptors: list[int]) -> None:
    for each in descriptors:
        os.close(each)


def main() -> None:
    """The arguments: the control socket and, where a test says so, another runner's command."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    Starter(control, sys.argv[2:] or runner_command()).run()


if __name__ == "__main__":
    main()
