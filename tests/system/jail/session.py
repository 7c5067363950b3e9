"""A whole session of our own daemon in a network whose only way out is us; run as a script.

The default route of the network leads to a TUN device: every packet that would leave the machine is read
here instead. argv: the levels to try. Prints as JSON how many packets came, by level, and of the control.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import json
import os
import select
import socket
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

from ollama_adapter.errors import NotSandboxed, TransportError
from ollama_adapter.system import settings
from ollama_adapter.system.http import Dial, encode_request, fetch, find_free_port, open_exchange
from ollama_adapter.system.jail import namespaces
from ollama_adapter.system.jail.linux import syscall
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope

NEWUSER, NEWNET = 0x10000000, 0x40000000
TUN, NO_HEADER, SET_INTERFACE = 0x1, 0x1000, 0x400454CA
SET_ADDRESS, SET_FLAGS, ADD_ROUTE = 0x8916, 0x8914, 0x890B
UP = 0x1
NAME = b"recorder"


def network() -> int:
    """A network of our own; the descriptor from which what leaves it is read."""
    uid, gid = os.getuid(), os.getgid()
    syscall("unshare", NEWNET if uid == 0 else NEWNET | NEWUSER)
    if uid:
        for name, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{uid} {uid} 1"),
            ("gid_map", f"{gid} {gid} 1"),
        ):
            Path("/proc/self", name).write_text(text)
    namespaces.raise_loopback()
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(tun, SET_INTERFACE, struct.pack("16sH22x", NAME, TUN | NO_HEADER))
    Path("/proc/sys/net/ipv6/conf", NAME.decode(), "disable_ipv6").write_text("1")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, SET_ADDRESS, struct.pack("16s16s8x", NAME, address("198.51.100.1")))
        fcntl.ioctl(any_socket, SET_FLAGS, struct.pack("16sh22x", NAME, UP))
        add_default_route(any_socket)
    return tun


def address(host: str) -> bytes:
    return struct.pack("=H2x4s8x", socket.AF_INET, socket.inet_aton(host))


def add_default_route(any_socket: socket.socket) -> None:
    """struct rtentry, with a pointer to the name of the device."""
    name = ctypes.create_string_buffer(NAME)
    anywhere = address("0.0.0.0")
    entry = struct.pack(
        "@L16s16s16sHhLPhPLLH",
        *(0, anywhere, anywhere, anywhere, UP, 0, 0, 0, 0, ctypes.addressof(name), 0, 0, 0),
    )
    fcntl.ioctl(any_socket, ADD_ROUTE, entry)


def packets(tun: int) -> int:
    """How many have come since we last asked."""
    count = 0
    while select.select([tun], [], [], 0.05)[0]:
        os.read(tun, 65536)
        count += 1
    return count


def control(tun: int) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"prompt", ("192.0.2.7", 53))
    with socket.socket() as sock:
        sock.setblocking(False)
        sock.connect_ex(("192.0.2.7", 443))
    return packets(tun)


async def session(level: Level) -> str:
    """Start, answer, abort, embed, be asked to pull, stop."""
    scope = TaskScope()
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        home, models = os.path.join(base, "home"), os.path.join(base, "models")
        os.mkdir(home)
        os.mkdir(models)
        argv, port = settings.embedded_command(), find_free_port()
        environment = {"HOME": home, "OLLAMA_MODELS": models, "OLLAMA_HOST": f"127.0.0.1:{port}"}
        policy = daemon_policy(level, argv, home=home, models=models, port=port)
        try:
            child = await spawn(argv, environment, "/", scope, policy)
        except NotSandboxed as refusal:
            return f"refused: {refusal}"
        said = await exchanges(child.dial)
        await child.stop(10.0)
        await scope.aclose()
    return said


async def exchanges(dial: Dial) -> str:
    request = encode_request("GET", "/api/version")
    while True:
        with contextlib.suppress(TransportError):
            await fetch(dial, request, connect_s=5, answer_s=5)
            break
        await asyncio.to_thread(lambda: None)
    asked: dict[str, Any] = {"model": "tinydoc", "prompt": "What does len do?"}
    statuses = []
    for path, body in (
        ("/api/generate", asked | {"options": {"num_predict": 8}, "stream": False}),
        ("/api/embed", {"model": "tinydoc", "input": "text"}),
        ("/api/pull", {"model": "anything", "stream": False}),
        ("/api/generate", {"model": "big:cloud", "prompt": "x", "stream": False}),
    ):
        answer = await fetch(
            dial, encode_request("POST", path, json.dumps(body).encode()), connect_s=5, answer_s=60
        )
        statuses.append(answer.status)
    aborted = encode_request("POST", "/api/generate", json.dumps(asked).encode())
    came = asyncio.Event()
    exchange = await open_exchange(dial, aborted, lambda *_: came.set(), 5)
    await came.wait()
    exchange.close()
    return " ".join(map(str, statuses))


def main() -> None:
    try:
        tun = network()
    except OSError as error:
        json.dump({"walls": str(error)}, sys.stdout)
        return
    report: dict[str, Any] = {"walls": "", "control": control(tun)}
    for level in sys.argv[1:]:
        said = asyncio.run(session(Level(level)))
        report[level] = {"said": said, "packets": packets(tun)}
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
