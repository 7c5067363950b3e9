"""A network of our own, whose every route leads to a recorder.

It has a loopback and nothing else, but the default routes lead there, too: what a program sends to any address
is sent, and the recorder reads it as it goes out. It needs no rights but those over a network of its own.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import select
import socket
import struct
import threading
from pathlib import Path

from ollama_adapter.system.jail.linux import syscall

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SET_ADDRESS, _SET_FLAGS, _ADD_ROUTE = 0x8916, 0x8914, 0x890B
_UP = 0x1
_TENTATIVE = 0x40
_ALL_PROTOCOLS = 0x0003
_OUTGOING = 4
_SOL_PACKET, _STATISTICS = 263, 6
_IPV4, _IPV6 = 0x0800, 0x86DD
OURS, OURS6 = "198.51.100.1", "2001:db8::1"
ELSEWHERE, ELSEWHERE6 = "192.0.2.7", "2001:db8:1::7"


def enter_network() -> None:
    """For this process and what it starts. Raises OSError where a network of one's own is refused."""
    uid, gid = os.getuid(), os.getgid()
    syscall("unshare", _NEWNET if uid == 0 else _NEWNET | _NEWUSER)
    if uid:
        own = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
        for name, text in own.items():
            Path("/proc/self", name).write_text(text)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        for alias, host in ((b"lo", "127.0.0.1"), (b"lo:1", OURS)):
            fcntl.ioctl(any_socket, _SET_ADDRESS, struct.pack("16s16s8x", alias, _address(host)))
            fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh22x", alias, _UP))
        _add_default_route(any_socket)
    if Path("/proc/net/if_inet6").exists():
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
            own6 = socket.inet_pton(socket.AF_INET6, OURS6)
            fcntl.ioctl(any_socket, _SET_ADDRESS, struct.pack("=16sIi", own6, 128, 1))
            route = struct.pack("@16s16s16sIHHILIi", *(bytes(16),) * 3, 0, 0, 0, 1, 0, _UP, 1)
            fcntl.ioctl(any_socket, _ADD_ROUTE, route)
        while _tentative():  # the kernel settles an address in its own time
            pass


def _tentative() -> bool:
    lines = Path("/proc/net/if_inet6").read_text().splitlines()
    return any(int(line.split()[4], 16) & _TENTATIVE for line in lines)


def _address(host: str) -> bytes:
    return struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(host))


def _add_default_route(any_socket: socket.socket) -> None:
    """struct rtentry, with a pointer to the name of the device."""
    name = ctypes.create_string_buffer(b"lo")
    anywhere = _address("0.0.0.0")
    entry = struct.pack(
        "@L16s16s16sHhLPhPLLH",
        *(0, anywhere, anywhere, anywhere, _UP, 0, 0, 0, 0, ctypes.addressof(name), 0, 0, 0),
    )
    fcntl.ioctl(any_socket, _ADD_ROUTE, entry)


class Recorder:
    """Counts the packets that are sent in the network of whoever makes it."""

    def __init__(self) -> None:
        kind = socket.SOCK_DGRAM
        self._socket = socket.socket(socket.AF_PACKET, kind, socket.htons(_ALL_PROTOCOLS))
        self.near = 0
        """To the loopback's own addresses: what application and daemon say to each other."""
        self.away = 0
        """To anywhere else."""
        self._asked, self._ask = os.pipe()
        self._answered = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()

    def counts(self) -> tuple[int, int]:
        """Packets `away` and `near` since it was last asked; all that were sent before are in it."""
        self._answered.clear()
        os.write(self._ask, b"?")
        self._answered.wait()
        counts = self.away, self.near
        self.away = self.near = 0
        return counts

    def lost(self) -> int:
        """Packets that came faster than they were read."""
        told = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        return int(struct.unpack("=II", told)[1])

    def _read(self) -> None:
        while True:
            waiting: list[socket.socket | int] = [self._socket, self._asked]
            ready, _, _ = select.select(waiting, [], [])
            if self._socket in ready:
                self._count(*self._socket.recvfrom(65536))
            else:  # nothing is left to be read
                os.read(self._asked, 1)
                self._answered.set()

    def _count(self, packet: bytes, where: tuple[str, int, int, int, bytes]) -> None:
        _, protocol, kind, *_ = where
        if kind != _OUTGOING:  # what goes out comes in again: it is counted once
            return
        if (protocol == _IPV4 and packet[16] == 127) or (
            protocol == _IPV6 and packet[24:40] == bytes(15) + b"\1"
        ):
            self.near += 1
        else:
            self.away += 1


def send_away() -> int:
    """The control: a prompt to elsewhere by each way there is; how many packets that is at least."""
    sent = 0
    for family, host in ((socket.AF_INET, ELSEWHERE), (socket.AF_INET6, ELSEWHERE6)):
        if family == socket.AF_INET6 and not Path("/proc/net/if_inet6").exists():
            continue
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"prompt", (host, 53))
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setblocking(False)
            sock.connect_ex((host, 443))
        sent += 2
    return sent
