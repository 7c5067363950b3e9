"""Whose sockets listen on a port. Reads only; on another system than Linux, nobody's are known.

The kernel is asked for the listeners of this one port (sock_diag): some ten microseconds. Its tables in
/proc say the same, but hold every connection there is, and take milliseconds to tens of them, in which no
token would be read: they are for kernels that answer no such question.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LISTEN: Final = "0A"
TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))

AF_NETLINK: Final = 16  # the numbers of linux/netlink.h, linux/sock_diag.h and linux/inet_diag.h
NETLINK_SOCK_DIAG: Final = 4
SOCK_DIAG_BY_FAMILY: Final = 20
REQUEST_ALL: Final = 0x301
NLMSG_ERROR: Final = 2
NLMSG_DONE: Final = 3
LISTENING: Final = 1 << 10
IPPROTO_TCP: Final = 6
HEAD: Final = struct.Struct("=IHHII")  # of a message: its length, type, flags, number, sender
ORDER: Final = struct.Struct("=BBBBI")  # family, protocol, extensions, -, states
PORT_AND_NO_MORE: Final = struct.Struct("!H46x")
UID_AT: Final = 64  # in the kernel's description of a socket
ANSWER_BYTES: Final = 1 << 16
ANSWER_S: Final = 1.0


def listener_uids(port: int) -> set[int]:
    """The owners of the sockets that listen on a port; nobody where it cannot be read."""
    try:
        return {uid for family in (socket.AF_INET, socket.AF_INET6) for uid in _asked(family, port)}
    except (OSError, struct.error):
        return set(_read(port))


def _asked(family: int, port: int) -> Iterator[int]:
    """The kernel's own answer. Raises OSError where it gives none."""
    body = ORDER.pack(family, IPPROTO_TCP, 0, 0, LISTENING) + PORT_AND_NO_MORE.pack(port)
    request = HEAD.pack(HEAD.size + len(body), SOCK_DIAG_BY_FAMILY, REQUEST_ALL, 1, 0) + body
    with socket.socket(AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG) as kernel:
        kernel.settimeout(ANSWER_S)
        kernel.sendto(request, (0, 0))
        while True:
            for kind, message in _messages(kernel.recv(ANSWER_BYTES)):
                if kind == NLMSG_DONE:
                    return
                if kind == NLMSG_ERROR:
                    raise OSError("the kernel does not tell who listens")
                yield struct.unpack_from("=I", message, UID_AT)[0]


def _messages(answer: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at < len(answer):
        size, kind, *_ = HEAD.unpack_from(answer, at)
        if size < HEAD.size:
            raise OSError("the kernel's answer cannot be read")
        yield kind, answer[at + HEAD.size : at + size]
        at += (size + 3) & ~3


def _read(port: int) -> Iterator[int]:
    """From the tables of all connections."""
    for table in TABLES:
        try:
            lines = table.read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                yield int(fields[7])
