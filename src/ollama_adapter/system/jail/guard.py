"""The guard: decides each bind, listen and connect of a jailed daemon, and makes it in its place.

It runs in the keeper. The kernel stops the caller and asks; the guard takes a duplicate of the caller's
socket (pidfd_getfd), copies the address out of the caller's memory, and makes sure that the question
still stands (else the process may have been replaced by another of the same number, whose memory we
read). Then it makes the call itself, on the duplicate, with its own copy of the address, and answers with
the result. It never lets the kernel continue the caller's own call: another thread could change the
address in between. What it allows:

- bind: 127.0.0.1, port 0 or one from 1024 on. The socket's inode is remembered.
- listen: on a socket bound to 127.0.0.1 (an unbound one would listen on every address).
- connect: 127.0.0.1, to a port on which a remembered socket listens now. Other programs of this machine,
  a resolver or a proxy among them, cannot be reached: they could carry a prompt out.
- kill, tgkill, pidfd_send_signal, where Landlock does not know about signals yet (before Linux 6.12): to
  the daemon's own processes, which cannot leave the keeper's group.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import select
import socket
import struct
import threading

from ollama_adapter.system.jail.linux import SYSCALLS, machine, syscall
from ollama_adapter.system.jail.seccomp import ASKED_ABOUT, SIGNALS

LOOPBACK = "127.0.0.1"
FIRST_PORT = 1024
LISTENING = "0A"

_RECV, _SEND, _ID_VALID = 0xC0502100, 0xC0182101, 0x40082102
_QUESTION = struct.Struct("=QIIiIQ6Q")  # id, pid, flags, nr, arch, ip, args
_ANSWER = struct.Struct("=QqiI")
_PIDFD_THREAD = os.O_EXCL
_TABLE = "/proc/net/tcp"


class Refused(Exception):
    """The answer is no; `code` is the error that the caller gets."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class Question:
    """One call of one thread, which waits."""

    def __init__(self, raw: bytes | bytearray, calls: dict[int | None, str]) -> None:
        self.id, self.thread, _, number, _, _, *arguments = _QUESTION.unpack(raw)
        self.call = calls[number]
        self.fd = _int(arguments[0])
        self.second: int = arguments[1]
        self.third = _int(arguments[2])


class Guard:
    """Answers on one descriptor. `fileno` becomes readable when there is a question."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._bound: set[int] = set()
        column = machine()
        self._calls = {SYSCALLS[n][column]: n for n in (*ASKED_ABOUT, *SIGNALS)}

    def fileno(self) -> int:
        return self._fd

    def answer(self) -> bool:
        """Answer the next question. False when nobody is left who could ask."""
        states = select.poll()
        states.register(self._fd, select.POLLIN)
        events = states.poll(0)
        if not events or not events[0][1] & select.POLLIN:
            return not events  # to receive would wait for ever
        buffer = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(self._fd, _RECV, buffer)
        except OSError as error:
            return error.errno in (
                errno.ENOENT,
                errno.EINTR,
            )  # the caller has been killed meanwhile
        self._decide(Question(buffer, self._calls))
        return True

    def _decide(self, question: Question) -> None:
        duplicate: socket.socket | None = None
        try:
            if question.call in SIGNALS:
                self._send(question.id, self._signal(question))
                return
            duplicate = self._duplicate(question)
            if question.call == "listen":
                code = self._listen(duplicate, _int(question.second))
            elif question.call == "bind":
                code = self._bind(duplicate, self._address(question))
            else:
                address = self._address(question)
                if listener_inode(address[1]) not in self._bound:
                    raise Refused(errno.ECONNREFUSED)
                blocked, duplicate = duplicate, None
                self._connect(blocked, address, question.id)
                return
        except Refused as refusal:
            code = refusal.code
        except OSError as error:
            code = error.errno or errno.EACCES
        finally:
            if duplicate is not None:
                duplicate.close()
        self._send(question.id, code)

    # What the caller means

    def _take(self, question: Question) -> int:
        """A duplicate of the caller's descriptor."""
        pidfd = _open_process(question.thread)
        try:
            return syscall("pidfd_getfd", pidfd, question.fd, 0)
        finally:
            os.close(pidfd)

    def _duplicate(self, question: Question) -> socket.socket:
        """The caller's socket, which must be TCP over IPv4."""
        fd = self._take(question)
        try:
            duplicate = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        kind = (duplicate.family, duplicate.type, duplicate.proto)
        if kind != (socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP):
            duplicate.close()
            raise Refused(errno.EACCES)
        self._still_asked(question.id)
        return duplicate

    def _address(self, question: Question) -> tuple[str, int]:
        """The address it asks for: 127.0.0.1 and a port, or Refused."""
        if not 8 <= question.third <= 128:
            raise Refused(errno.EINVAL)
        with open(f"/proc/{question.thread}/mem", "rb", buffering=0) as memory:
            raw = os.pread(memory.fileno(), 8, question.second)
        self._still_asked(question.id)
        if len(raw) < 8:
            raise Refused(errno.EFAULT)
        family, port, host = struct.unpack("=H2s4s", raw)
        if family != socket.AF_INET:
            raise Refused(errno.EAFNOSUPPORT)
        if socket.inet_ntoa(host) != LOOPBACK:
            raise Refused(errno.EACCES)
        return LOOPBACK, int.from_bytes(port, "big")

    def _still_asked(self, id_: int) -> None:
        """What we opened by its number was the caller, if the caller still waits."""
        try:
            fcntl.ioctl(self._fd, _ID_VALID, struct.pack("=Q", id_))
        except OSError:
            raise Refused(errno.EINTR) from None

    # The three calls

    def _bind(self, duplicate: socket.socket, address: tuple[str, int]) -> int:
        if 0 < address[1] < FIRST_PORT:
            return errno.EACCES
        if listener_inode(address[1]) not in (None, *self._bound):
            return errno.EADDRINUSE  # another program's, which SO_REUSEPORT would share with us
        duplicate.bind(address)
        self._bound.add(os.fstat(duplicate.fileno()).st_ino)
        return 0

    def _listen(self, duplicate: socket.socket, backlog: int) -> int:
        if duplicate.getsockname()[0] != LOOPBACK:
            return errno.EACCES
        duplicate.listen(backlog)
        return 0

    def _connect(self, duplicate: socket.socket, address: tuple[str, int], id_: int) -> None:
        """A connect that would block waits in a thread of its own: the others are not held up."""

        def finish() -> None:
            with duplicate:
                self._send(id_, duplicate.connect_ex(address))

        if os.get_blocking(duplicate.fileno()):
            threading.Thread(target=finish, daemon=True).start()
        else:
            finish()

    def _signal(self, question: Question) -> int:
        """The numbers are in registers: nobody can change them. A pidfd is taken, and read."""
        if question.call == "kill":
            os.kill(_ours(question.fd), _int(question.second))
        elif question.call == "tgkill":
            process = _ours(question.fd)
            syscall("tgkill", process, _int(question.second), question.third)
        else:
            pidfd = self._take(question)
            try:
                with open(f"/proc/self/fdinfo/{pidfd}") as about:
                    pid = next(
                        (int(line.split()[1]) for line in about if line.startswith("Pid:")), 0
                    )
                _ours(pid)
                syscall("pidfd_send_signal", pidfd, _int(question.second), None, 0)
            finally:
                os.close(pidfd)
        return 0

    def _send(self, id_: int, code: int) -> None:
        with contextlib.suppress(OSError):  # the caller has gone meanwhile
            fcntl.ioctl(self._fd, _SEND, _ANSWER.pack(id_, 0, -code, 0))


def listener_inode(port: int) -> int | None:
    """The socket that listens on 127.0.0.1:port, by its inode."""
    wanted = f"0100007F:{port:04X}"
    with open(_TABLE) as table:
        for line in table:
            field = line.split()
            if field[1] == wanted and field[3] == LISTENING:
                return int(field[9])
    return None


def _ours(process: int) -> int:
    """The number of a process of the daemon's; the keeper is none, nor is a whole group."""
    if process <= 0 or process == os.getpid() or os.getpgid(process) != os.getpgrp():
        raise Refused(errno.EPERM)
    return process


def _open_process(thread: int) -> int:
    """A pidfd of the thread; of its process where the kernel (before 6.9) knows no others."""
    try:
        return syscall("pidfd_open", thread, _PIDFD_THREAD)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    with open(f"/proc/{thread}/status") as status:
        leader = next((int(line.split()[1]) for line in status if line.startswith("Tgid:")), 0)
    return syscall("pidfd_open", leader, 0)


def _int(argument: int) -> int:
    """What the kernel sees in a parameter that is an int."""
    return ctypes.c_int(argument & 0xFFFFFFFF).value
