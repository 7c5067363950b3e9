"""A daemon in a process of its own, and the plainest client for it."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

WATCHDOG_S = 60.0


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.body.splitlines()]

    @property
    def error(self) -> str:
        return str(self.lines[-1]["error"])


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    port: int
    models: Path
    children: list[psutil.Process] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def ask(
        self, path: str, body: Any = None, method: str = "", headers: dict[str, str] | None = None
    ) -> Answer:
        """One exchange; a body that is not bytes is sent as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WATCHDOG_S)
        with contextlib.closing(connection):
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, data, headers or {})
            answer = connection.getresponse()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, fields, answer.read())

    def generate(self, prompt: str = "ab", model: str = "tiny", **fields: Any) -> Answer:
        return self.ask("/api/generate", {"model": model, "prompt": prompt, **fields})

    def chat(self, *contents: str, model: str = "tiny", **fields: Any) -> Answer:
        roles = ("user", "assistant")
        messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]
        return self.ask("/api/chat", {"model": model, "messages": messages, **fields})

    @contextlib.contextmanager
    def streaming(self, body: dict[str, Any], path: str = "/api/generate") -> Iterator[Stream]:
        """A request under way on a socket of its own."""
        data = json.dumps(body).encode()
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.address}\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", self.port), timeout=WATCHDOG_S) as sock:
            sock.sendall(head.encode() + data)
            with sock.makefile("rb") as file:
                yield Stream(sock, file)

    def runners(self) -> list[psutil.Process]:
        """The processes that hold its models: the starter's children, where it has one."""
        return [each for each in self.family() if not is_starter(each)]

    def starter(self) -> psutil.Process:
        """The one that starts them."""
        (found,) = (each for each in self.family() if is_starter(each))
        return found

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def resident(self) -> list[str]:
        return [each["name"] for each in self.ask("/api/ps").json["models"]]

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Signal the daemon, and wait for it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(WATCHDOG_S)


@dataclass
class Stream:
    sock: socket.socket
    file: Any

    def line(self) -> dict[str, Any]:
        """The next record, whatever head and chunk framing stand before it."""
        while line := self.file.readline():
            if line.startswith(b"{"):
                return dict(json.loads(line))
        raise EOFError

    def rest(self) -> bytes:
        with contextlib.suppress(ConnectionError):
            return bytes(self.file.read())
        return b""


def spawn(
    models: Path, port: int = 0, of_its_own: bool = False, /, **env: str
) -> subprocess.Popen[bytes]:
    """The daemon's process, just started; in a group of its own where that is asked for."""
    environment = {name: value for name, value in os.environ.items() if "OLLAMA" not in name}
    environment |= {"OLLAMA_HOST": f"127.0.0.1:{port}", "OLLAMA_MODELS": str(models), **env}
    return subprocess.Popen(
        [sys.executable, "-m", "ollama_adapter.embedded"],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=of_its_own,
    )


@contextlib.contextmanager
def running(models: Path, **env: str) -> Iterator[Daemon]:
    """A daemon that answers; killed, if need be, at the end."""
    daemon = Daemon(spawn(models, port := free_port(), **env), port, models)
    try:
        wait_until_ready(daemon)
        yield daemon
    finally:
        daemon.process.kill()
        daemon.process.communicate()


def wait_until_ready(daemon: Daemon) -> None:
    while daemon.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            if daemon.ask("/api/version").status == 200:
                return
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.process.wait(0.01)
    raise AssertionError(f"the daemon ended with {daemon.process.returncode}")


def is_starter(process: psutil.Process) -> bool:
    """A runner is one, too, until it has become a runner."""
    try:
        return any(each.endswith("starter.py") for each in process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def gone(processes: list[psutil.Process]) -> bool:
    """True when they have all ended, whoever may still have to reap them."""
    for each in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            while each.status() != psutil.STATUS_ZOMBIE:
                with contextlib.suppress(psutil.TimeoutExpired):
                    each.wait(0.005)
    return True
