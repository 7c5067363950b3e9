"""A user, network, process, message and mount namespace of the daemon's own, and who is first in it.

The network has a loopback of its own and nothing else: no packet can leave, and the daemon needs no
port of ours. Process 1 reaps, connects inside when the keeper asks and hands the socket out; when it
ends, however it ends, the kernel ends every process of the namespace. It listens to the keeper alone.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import struct

from ollama_adapter.system.jail import confine
from ollama_adapter.system.jail.linux import syscall

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    from typing import Any, NoReturn

_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
OWN_SPACE = _NEWNS | _NEWUTS | _NEWIPC | _NEWPID | _NEWNET
_GET_FLAGS, _SET_FLAGS, _UP = 0x8913, 0x8914, 0x1
_REQUEST = struct.Struct("16sh22x")
LOOPBACK = "127.0.0.1"
MESSAGE_BYTES = 4096


def enter() -> None:
    """New namespaces; the process namespace is for our children. Root needs no user namespace."""
    if os.geteuid() == 0:
        syscall("unshare", OWN_SPACE)
        return
    uid, gid = os.getuid(), os.getgid()
    syscall("unshare", _NEWUSER | OWN_SPACE)
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def raise_loopback() -> None:
    """The one interface of the new network starts down."""
    any_socket = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    told = fcntl.ioctl(any_socket.fileno(), _GET_FLAGS, _REQUEST.pack(b"lo", 0))
    flags = _REQUEST.unpack(told)[1] | _UP
    fcntl.ioctl(any_socket.fileno(), _SET_FLAGS, _REQUEST.pack(b"lo", flags))
    any_socket.close()


class First:
    """Process 1. `keeper` is a socket to the keeper; `daemon` the child whose end is ours."""

    def __init__(self, keeper: _socket.socket, daemon: int, started: int, port: int) -> None:
        self._keeper = keeper
        self._daemon = daemon
        self._ended = os.pidfd_open(daemon)
        self._started = started  # closes when the daemon's program runs
        self._port = port
        self._poll = select.poll()
        self._connecting: dict[int, tuple[_socket.socket, int]] = {}

    def run(self) -> NoReturn:
        for fd in (self._keeper.fileno(), self._ended, self._started):
            self._poll.register(fd, select.POLLIN)
        while True:
            for fd, _ in sorted(self._poll.poll(), key=lambda each: each[0] == self._ended):
                if fd == self._started:
                    self._poll.unregister(fd)
                    self._tell("started")
                elif fd == self._ended:
                    self._end()
                elif fd == self._keeper.fileno():
                    self._on_keeper()
                else:
                    self._on_connected(fd)
            self._reap()

    def _end(self) -> NoReturn:
        _, status = os.waitpid(self._daemon, 0)
        self._tell(f"ended {os.waitstatus_to_exitcode(status)}")
        os._exit(0)

    def _reap(self) -> None:
        """What lost its parent is ours. Nobody waits for it: whenever we are awake is soon enough."""
        options = os.WEXITED | os.WNOHANG
        while (
            told := os.waitid(os.P_ALL, 0, options | os.WNOWAIT)
        ) and told.si_pid != self._daemon:
            os.waitid(os.P_PID, told.si_pid, options)

    def _on_keeper(self) -> None:
        order = self._keeper.recv(MESSAGE_BYTES)
        if not order:
            os._exit(1)
        kind = _socket.SOCK_STREAM | _socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC
        connection = _socket.socket(_socket.AF_INET, kind)
        connection.setsockopt(_socket.IPPROTO_TCP, _socket.TCP_NODELAY, 1)
        code = connection.connect_ex((LOOPBACK, self._port))
        if code == errno.EINPROGRESS:
            self._connecting[connection.fileno()] = (connection, int(order))
            self._poll.register(connection.fileno(), select.POLLOUT)
        else:
            self._hand_out(connection, int(order), code)

    def _on_connected(self, fd: int) -> None:
        self._poll.unregister(fd)
        connection, number = self._connecting.pop(fd)
        code = connection.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)
        self._hand_out(connection, number, code)

    def _hand_out(self, connection: _socket.socket, number: int, code: int) -> None:
        if code == 0 and connection.getpeername() == connection.getsockname():
            code = errno.ECONNREFUSED  # TCP may connect a free port to itself
        if code:
            self._tell(f"refused {number} {os.strerror(code)}")
        else:
            self._tell(f"connected {number}", connection.fileno())
        connection.close()

    def _tell(self, message: str, *fds: int) -> None:
        try:
            send(self._keeper, message, *fds)
        except OSError:
            os._exit(1)


def send(keeper: _socket.socket, message: str, *fds: int) -> None:
    """One datagram, with descriptors."""
    rights = struct.pack(f"={len(fds)}i", *fds)
    ancillary = [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, rights)] if fds else []
    keeper.sendmsg([message.encode()], ancillary)


def become_first(
    policy: dict[str, Any], keeper: _socket.socket, daemon: int, started: int
) -> NoReturn:
    """Process 1's own jail, then its work."""
    confine.close_descriptors([keeper.fileno(), started])
    confine.drop_capabilities()
    confine.undumpable()
    First(keeper, daemon, started, (policy["ports"] or [0])[0]).run()
