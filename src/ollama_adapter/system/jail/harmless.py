"""Attacks that do no harm where they succeed; run in a jail, as a script, to show that they do not.

argv[1] is JSON: what to try them on. The ends go to standard output as JSON: "" for success, else why not.
It knows the standard library only.
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
WAIT_S = 0.3
_PTRACE = {"x86_64": 101, "aarch64": 117}
_SEIZE = 0x4206


def dial_out(targets: Targets) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        code = sock.connect_ex((targets["outside"], 9))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))


def send_a_datagram(targets: Targets) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"", (targets["outside"], 9))


def dial_another_program(targets: Targets) -> None:
    with socket.create_connection(("127.0.0.1", targets["neighbour"]), WAIT_S):
        pass


def listen_on_every_address(targets: Targets) -> None:
    """It may listen, where nobody can come."""
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", targets["visited"]))
        sock.listen()
        sock.settimeout(WAIT_S)
        try:
            sock.accept()[0].close()
        except TimeoutError:
            raise OSError(errno.EHOSTUNREACH, "nobody outside reaches it") from None


def read_your_keys(targets: Targets) -> None:
    os.listdir(os.path.join(targets["home"], ".ssh"))


def read_your_home(targets: Targets) -> None:
    os.listdir(targets["home"])


def write_elsewhere(targets: Targets) -> None:
    with open(targets["elsewhere"], "w"):
        pass


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


def trace_a_process(targets: Targets) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = _PTRACE[os.uname().machine]
    if libc.syscall(ctypes.c_long(number), _SEIZE, targets["application"], None, None) < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def signal_a_process(targets: Targets) -> None:
    os.kill(targets["application"], 0)


ATTEMPTS: tuple[Callable[[Targets], None], ...] = (
    dial_out,
    send_a_datagram,
    dial_another_program,
    listen_on_every_address,
    read_your_keys,
    read_your_home,
    write_elsewhere,
    run_a_program,
    trace_a_process,
    signal_a_process,
)


def main() -> None:
    targets: Targets = json.loads(sys.argv[1])
    ends: dict[str, str] = {}
    for attempt in ATTEMPTS:
        try:
            attempt(targets)
            ends[attempt.__name__] = ""
        except OSError as error:
            ends[attempt.__name__] = error.strerror or type(error).__name__
    sys.stdout.write(json.dumps(ends))


if __name__ == "__main__":
    main()
