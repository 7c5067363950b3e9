"""A yard with walls, for the attacks: run as a script, in a process of its own.

Where it may, it makes a network of its own, with an outside address on which a peer listens; no packet of
a test is on any real network. It knows the standard library and the jail only, so that any interpreter
and any user can run it. argv: a directory of its own, then what to run ("control" or a level). How each
attack ended goes to standard output as JSON.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

BASE = Path(sys.argv[1])


def find_siblings() -> None:
    package = type(sys)("ollama_adapter")
    package.__path__ = [str(BASE / "ollama_adapter")]
    sys.modules["ollama_adapter"] = package


find_siblings()

from ollama_adapter.system.jail.linux import syscall  # noqa: E402
from ollama_adapter.system.jail.paths import daemon_policy  # noqa: E402
from ollama_adapter.system.jail.policy import Level  # noqa: E402

KEEPER = BASE / "ollama_adapter" / "system" / "jail" / "keeper.py"
ATTACKS = BASE / "attacks.py"
OUTSIDE, OUTSIDE6 = "198.51.100.1", "2001:db8::1"
VISITORS: deque[socket.socket] = deque(maxlen=100)
NEWNS, NEWUSER, NEWNET = 0x20000, 0x10000000, 0x40000000


def wall_in() -> str:
    """A network of our own; why there is none."""
    try:
        if os.geteuid() == 0:
            syscall("unshare", NEWNET | NEWNS)
            syscall("mount", None, b"/", None, 1 << 14 | 1 << 18, None)
        else:
            uid, gid = os.getuid(), os.getgid()
            syscall("unshare", NEWUSER | NEWNET)
            Path("/proc/self/setgroups").write_text("deny")
            Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
            Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
            _configure(any_socket, b"lo", "127.0.0.1")
            _configure(any_socket, b"lo:1", OUTSIDE)
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as any_socket:
            request = struct.pack("=16sIi", socket.inet_pton(socket.AF_INET6, OUTSIDE6), 128, 1)
            fcntl.ioctl(any_socket, 0x8916, request)
    except OSError as error:
        return f"{error.strerror}"
    return ""


def _configure(any_socket: socket.socket, name: bytes, address: str) -> None:
    where = struct.pack("=H2x4s8x", 2, socket.inet_aton(address))
    if name != b"lo":
        fcntl.ioctl(any_socket, 0x8916, struct.pack("16s16s8x", name, where))
    fcntl.ioctl(any_socket, 0x8914, struct.pack("16sh22x", name, 1))


# --- who is there to be talked to


def serve(sock: socket.socket, answer: Callable[[socket.socket], None]) -> None:
    def work() -> None:
        while True:
            try:
                answer(sock)
            except OSError:
                pass

    threading.Thread(target=work, daemon=True).start()


def greet(listener: socket.socket) -> None:
    visitor, _ = listener.accept()
    VISITORS.append(visitor)  # it may still have something to say
    visitor.send(b"hello")


def reply(sock: socket.socket) -> None:
    _, sender = sock.recvfrom(64)
    if sender:
        sock.sendto(b"hello", sender)


def listener(family: int, where: Any, kind: int = socket.SOCK_STREAM) -> Any:
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    try:
        sock.bind(where)
    except OSError:
        return 0
    if kind == socket.SOCK_STREAM:
        sock.listen(64)
        serve(sock, greet)
    else:
        serve(sock, reply)
    address = sock.getsockname()
    return address[1] if isinstance(address, tuple) else address


def free_ports(count: int) -> list[int]:
    socks = [socket.socket() for _ in range(count)]
    for sock in socks:
        sock.bind(("0.0.0.0", 0))
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def neighbours(place: Path) -> dict[str, Any]:
    shared = socket.socket()
    shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    shared.bind(("127.0.0.1", 0))
    shared.listen(64)
    serve(shared, greet)
    abstract = f"jail-yard-{os.getpid()}-{place.name}"
    listener(socket.AF_UNIX, "\0" + abstract)
    for each in ("unix", "datagram"):
        kind = socket.SOCK_STREAM if each == "unix" else socket.SOCK_DGRAM
        listener(socket.AF_UNIX, str(place / each), kind)
        os.chmod(place / each, 0o666)
    return {
        "outside": OUTSIDE,
        "outside6": OUTSIDE6,
        "tcp": listener(socket.AF_INET, ("0.0.0.0", 0)),
        "tcp6": listener(socket.AF_INET6, ("::", 0)),
        "udp": listener(socket.AF_INET, ("0.0.0.0", 0), socket.SOCK_DGRAM),
        "udp6": listener(socket.AF_INET6, ("::", 0), socket.SOCK_DGRAM),
        "dns": listener(socket.AF_INET, (OUTSIDE, 53), socket.SOCK_DGRAM) or 53,
        "shared": shared.getsockname()[1],
        "visited": free_ports(3),
        "unix": str(place / "unix"),
        "unix_datagram": str(place / "datagram"),
        "abstract": abstract,
    }


@contextlib.contextmanager
def visitors(targets: dict[str, Any]) -> Iterator[None]:
    """Somebody who keeps trying whether a port of the yard has been opened."""
    done = threading.Event()
    any_, outside, six = targets["visited"]
    doors = [
        (socket.AF_INET, OUTSIDE, any_),
        (socket.AF_INET, OUTSIDE, outside),
        (socket.AF_INET6, OUTSIDE6, six),
        (socket.AF_INET, "127.0.0.1", targets["shared"]),
    ]

    def work() -> None:
        while not done.wait(0.01):
            chosen = Path(targets["own"], "port")
            more = []
            with contextlib.suppress(OSError, ValueError):
                more = [(socket.AF_INET, OUTSIDE, int(chosen.read_text()))]
            for family, host, port in doors + more:
                with socket.socket(family) as sock, contextlib.suppress(OSError):
                    sock.settimeout(0.05)
                    sock.connect((host, port))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextlib.contextmanager
def stranger() -> Iterator[dict[str, Any]]:
    """A process of the same user that has nothing to do with the jail."""
    code = (
        "import ctypes, time; b = ctypes.create_string_buffer(b'private', 8);"
        "print(ctypes.addressof(b), flush=True); time.sleep(600)"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        yield {"stranger": process.pid, "address": int(process.stdout.readline())}
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def grounds(place: Path) -> dict[str, Any]:
    """Files to be read, and files to be spared."""
    for each in ("own", "readable", "elsewhere", "home/.ssh"):
        (place / each).mkdir(parents=True)
    (place / "home/.ssh").chmod(0o700)
    names = {
        "secret": place / "home/.ssh/id",
        **{
            n: place / "elsewhere" / n for n in ("movable", "swappable", "truncatable", "removable")
        },
    }
    for path in names.values():
        path.write_text("secret")
        path.chmod(0o600)
    return {
        "own": str(place / "own"),
        "readable": str(place / "readable"),
        "elsewhere": str(place / "elsewhere"),
        "tmp": tempfile.gettempdir(),
        **{name: str(path) for name, path in names.items()},
    }


# --- runs


def run_control(argv: list[str]) -> dict[str, Any]:
    """As an ordinary child of a careless program."""
    with open(os.devnull) as inherited:
        environment = os.environ | {"YARD_SECRET": "prompt"}
        subprocess.run(argv, env=environment, pass_fds=[inherited.fileno()], check=False)
    return {"level": "control"}


def run_jailed(
    level: Level, landlock: int, targets: dict[str, Any], argv: list[str]
) -> dict[str, Any]:
    """Under a keeper, as a daemon; what the keeper says."""
    os.environ["YARD_SECRET"] = "prompt"
    policy = daemon_policy(
        level, argv, home=targets["own"], models=targets["readable"], port=free_ports(1)[0]
    )
    policy = replace(policy, landlock=landlock)
    spec = {
        "argv": argv,
        "env": {},
        "cwd": "/",
        "parent": os.getpid(),
        "policy": json.loads(policy.to_json()),
    }
    ours, control = socket.socketpair()
    doorway, inside = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fds = [control.fileno(), inside.fileno()]
    with ours, doorway, open(os.devnull) as inherited:
        os.set_inheritable(inherited.fileno(), True)
        keeper = subprocess.Popen(
            [sys.executable, "-I", "-S", str(KEEPER), *map(str, fds)],
            pass_fds=[*fds, inherited.fileno()],
            start_new_session=True,
        )
        control.close()
        inside.close()
        ours.sendall(json.dumps(spec).encode() + b"\n")
        told: dict[str, Any] = {}
        for line in ours.makefile():
            told |= json.loads(line)
            if told["event"] in ("failed", "exited"):
                break
        ours.shutdown(socket.SHUT_RDWR)
    keeper.wait()
    return told


def run(what: str) -> dict[str, Any]:
    place = Path(tempfile.mkdtemp(prefix=f"{what}-", dir=BASE / "places"))
    place.chmod(0o755)
    with stranger() as other:
        targets = grounds(place) | neighbours(place) | other
        shutil.copy(ATTACKS, targets["readable"])
        targets["grouped"] = not what.startswith("namespaces")
        attacks = os.path.join(targets["readable"], ATTACKS.name)
        argv = [sys.executable, "-I", "-S", attacks, json.dumps(targets)]
        with visitors(targets):
            if what == "control":
                told = run_control(argv)
            else:
                level, _, landlock = what.partition("-landlock-")
                told = run_jailed(Level(level), int(landlock or 99), targets, argv)
    ends = Path(targets["own"], "ends.json")
    return told | {"ends": json.loads(ends.read_text()) if ends.exists() else {}}


def main() -> None:
    global OUTSIDE, OUTSIDE6
    report: dict[str, Any] = {"walls": wall_in()}
    if report["walls"]:  # then what is outside is on the loopback, too: no packet leaves
        OUTSIDE, OUTSIDE6 = "127.0.0.9", "::1"
    for what in sys.argv[2:]:
        if what == "probe":
            command = [sys.executable, "-I", "-S", str(KEEPER.with_name("trampoline.py")), what]
            report[what] = json.loads(
                subprocess.run(command, capture_output=True, check=True).stdout
            )
        else:
            report[what] = run(what)
    json.dump(report, sys.stdout)


if __name__ == "__main__":
    main()
