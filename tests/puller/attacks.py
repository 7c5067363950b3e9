"""What a process that fetches might try if a registry had taken it over; run in its jail, as a script.

argv: its door, then JSON: what to try it on. How each attempt ended goes through the door as JSON: "" for
success, else why not. It knows the standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any

Targets = dict[str, Any]


def dial_this_machine(targets: Targets) -> None:
    socket.create_connection(("127.0.0.1", targets["neighbour"]), 1).close()


def dial_out(targets: Targets) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        code = sock.connect_ex((targets["outside"], 9))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))


def send_a_datagram(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"x", ("127.0.0.1", targets["datagrams"]))


def resolve_a_name(_: Targets) -> None:
    socket.getaddrinfo("localhost", 80)
    with open("/etc/hosts") as file:  # it may know that name by itself
        file.read()


def dial_a_unix_socket(targets: Targets) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(targets["unix"])


def make_a_pair(_: Targets) -> None:
    for each in socket.socketpair():
        each.close()


def listen(_: Targets) -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()


def turn_the_stream_elsewhere(targets: Targets) -> None:
    with socket.socket(fileno=os.dup(targets["stream"])) as stream:
        try:
            stream.connect(targets["unix"])
        except OSError as error:
            if error.errno != errno.EISCONN:  # the kernel would have, but for that
                raise


def read_the_home(targets: Targets) -> None:
    os.listdir(targets["home"])


def read_the_users(_: Targets) -> None:
    with open("/etc/passwd") as file:
        file.read()


def read_the_models(targets: Targets) -> None:
    with open(targets["blob"], "rb") as file:
        file.read(1)


def write_a_model(targets: Targets) -> None:
    with open(targets["blob"], "ab"):
        pass


def write_elsewhere(targets: Targets) -> None:
    with open(targets["elsewhere"], "w"):
        pass


def look_into_the_application(targets: Targets) -> None:
    with open(f"/proc/{targets['application']}/environ", "rb") as file:
        file.read(1)


def signal_the_application(targets: Targets) -> None:
    os.kill(targets["application"], 0)


def trace_the_application(targets: Targets) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 101, "aarch64": 117}[os.uname().machine]
    if libc.syscall(ctypes.c_long(number), 0x4206, targets["application"], None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def run_a_program(_: Targets) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv("/bin/sh", ["sh", "-c", "exit 0"])
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(code, os.strerror(code))


ATTEMPTS: tuple[Callable[[Targets], None], ...] = (
    dial_this_machine,
    dial_out,
    send_a_datagram,
    resolve_a_name,
    dial_a_unix_socket,
    make_a_pair,
    listen,
    turn_the_stream_elsewhere,
    read_the_home,
    read_the_users,
    read_the_models,
    write_a_model,
    write_elsewhere,
    look_into_the_application,
    signal_the_application,
    trace_the_application,
    run_a_program,
)


def what_it_needs() -> None:
    """Its own directory, its certificates, TLS: it would be of no use without."""
    import ssl

    with open("staged", "w") as file:
        file.write("x")
    os.replace("staged", "staged-too")
    ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cafile=sys.argv[3])


def main() -> None:
    door = socket.socket(fileno=int(sys.argv[1]))
    targets: Targets = json.loads(sys.argv[2])
    _, fds, _, _ = socket.recv_fds(door, 64, 1)
    targets["stream"] = fds[0]
    what_it_needs()
    ends: dict[str, str] = {}
    for attempt in ATTEMPTS:
        try:
            attempt(targets)
            ends[attempt.__name__] = ""
        except OSError as error:
            ends[attempt.__name__] = error.strerror or type(error).__name__
    door.send(json.dumps(ends).encode())


if __name__ == "__main__":
    main()
