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
from pathlib import Path

from ollama_adapter.system.jail import bpf
from ollama_adapter.system.jail.linux import syscall

_NEWUSER, _NEWNET = 0x10000000, 0x40000000
_SET_ADDRESS, _SET_FLAGS, _ADD_ROUTE = 0x8916, 0x8914, 0x890B
_UP = 0x1
_TENTATIVE = 0x40
_ALL_PROTOCOLS = 0x0003
_OUTGOING = 4
_ATTACH_FILTER = 26
_KIND, _PROTOCOL = 0xFFFFF004, 0xFFFFF000  # of a packet, as a filter loads them
_WHOLE = 0xFFFF
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


def _away() -> bpf.Program:
    """What the recorder hears: what goes out, to anywhere but the loopback's own addresses."""
    here = [bpf.decide(0)]
    heard = [bpf.decide(_WHOLE)]
    to_127 = [bpf.load(16), bpf.mask(0xFF000000), *bpf.if_equal(127 << 24, here), *heard]
    to_1 = [each for at in (24, 28, 32) for each in (bpf.load(at), *bpf.unless_one_of([0], heard))]
    return [
        bpf.load(_KIND),
        *bpf.unless_one_of([_OUTGOING], here),  # on a loopback it comes in again
        bpf.load(_PROTOCOL),
        *bpf.if_equal(_IPV4, to_127),
        *bpf.if_equal(_IPV6, [*to_1, bpf.load(36), *bpf.if_equal(1, here), *heard]),
        *heard,
    ]


class Recorder:
    """Hears the packets that are sent away in the network of whoever makes it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        code = ctypes.create_string_buffer(bpf.assemble(program := _away()))
        packed = struct.pack("@HP", len(program), ctypes.addressof(code))
        self._socket.setsockopt(socket.SOL_SOCKET, _ATTACH_FILTER, packed)
        self._socket.bind(("lo", _ALL_PROTOCOLS))
        self._sent = _sent()

    def counts(self) -> tuple[int, int]:
        """Packets that were sent away since it was last asked, and packets in all."""
        away, before = 0, self._sent
        while select.select([self._socket], [], [], 0)[0]:
            self._socket.recv(65536)
            away += 1
        self._sent = _sent()
        return away, self._sent - before

    def lost(self) -> int:
        """Packets that it had no room for."""
        told = self._socket.getsockopt(_SOL_PACKET, _STATISTICS, 8)
        return int(struct.unpack("=II", told)[1])


def _sent() -> int:
    """How many packets this network's one interface has sent."""
    (line,) = (each for each in Path("/proc/net/dev").read_text().splitlines() if "lo:" in each)
    return int(line.partition(":")[2].split()[9])


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
