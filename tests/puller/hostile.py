"""A process that fetches, taken over by its registry: what it says and writes is meant to do harm.

Run as a script in the jail in place of the real one. What it does is the name of the model.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import socket
import sys
from typing import Any

CONTENT = b"GGUF" + bytes(2000)
DIGEST = "sha256:" + hashlib.sha256(CONTENT).hexdigest()
FILE = DIGEST.replace(":", "-")


def receive(door: socket.socket) -> tuple[dict[str, Any], list[int]]:
    data, fds, _, _ = socket.recv_fds(door, 1 << 14, 1)
    return (json.loads(data) if data else {}), fds


def tell(door: socket.socket, event: str, **about: Any) -> None:
    door.send(json.dumps({"event": event, **about}).encode())


def write(name: str, data: bytes) -> None:
    with open(name, "wb") as file:
        file.write(data)


def write_manifest() -> None:
    entry = {
        "mediaType": "application/vnd.ollama.image.model",
        "digest": DIGEST,
        "size": len(CONTENT),
    }
    write("manifest", json.dumps({"layers": [entry], "config": entry}).encode())


def on_manifest(what: str, door: socket.socket) -> None:
    if what == "garbage":
        door.send(b"\xff{" * 100)
    elif what == "nested":
        door.send(b"[" * 10_000)
    elif what == "directory":
        os.mkdir("manifest")
    elif what == "link":
        os.symlink("/etc/passwd", "manifest")
    elif what == "pipe":
        os.mkfifo("manifest")
    elif what == "huge":
        write("manifest", b"[" + b" " * (3 << 20))
    elif what == "elsewhere":
        for host in (
            "169.254.169.254:80",
            "127.0.0.1:22",
            "localhost:22",
            "evil.example:443",
            "x" * 8000,
        ):
            tell(door, "dial")
            _, fds = receive(door)
            with socket.socket(fileno=fds[0]) as stream:
                with contextlib.suppress(ConnectionError):
                    stream.sendall(f"CONNECT {host} HTTP/1.1\r\n\r\n".encode())
                    while stream.recv(100):
                        pass
        tell(door, "failed", kind="refused", reason="nobody", again=False)
    elif what == "not-connect":
        tell(door, "dial")
        _, fds = receive(door)
        with socket.socket(fileno=fds[0]) as stream:
            stream.sendall(b"GET http://127.0.0.1/ HTTP/1.1\r\n\r\n")
            reason = stream.recv(100).decode()
        tell(door, "failed", kind="protocol", reason=reason, again=False)
    else:
        write_manifest()


def on_blob(what: str, door: socket.socket) -> None:
    if what == "linked-blob":
        os.symlink("/etc/passwd", FILE)
    elif what == "piped-blob":
        os.mkfifo(FILE)
    elif what == "doubled-blob":
        write("other", CONTENT)
        os.link("other", FILE)  # to be written through the other name later
    elif what == "boasts":
        for done in (1 << 60, -5, 3, 0, 1 << 62):
            tell(door, "progress", done=done)
        write(FILE, b"short")
    elif what == "stays":
        write(FILE, CONTENT[:-1] + b"x")
        if os.fork() == 0:  # whoever is left could change it between the check and the move
            while True:
                signal.pause()


def main() -> None:
    door = socket.socket(fileno=int(sys.argv[1]))
    receive(door)
    while True:
        order, _ = receive(door)
        if not order:
            return
        if order["do"] == "manifest":
            found = re.search("/library/([a-z-]+)/", order["path"])
            assert found
            what = found[1]
            on_manifest(what, door)
        else:
            on_blob(what, door)
        tell(door, "done")


if __name__ == "__main__":
    main()
