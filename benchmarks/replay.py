"""Builds the programs in C, and runs the replay server, pinned to a core."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

SOURCES: Final = Path(__file__).parent
FLAGS: Final = ("-O2", "-std=gnu11")


class NoCompiler(Exception):
    """There is nothing to build the programs with, or they cannot be built here."""


def build(name: str, directory: Path) -> Path:
    """The program of `name`.c, made in `directory` with the system's C compiler."""
    candidates = map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))
    compiler = next(filter(None, candidates), None)
    if compiler is None:
        raise NoCompiler(
            "a C compiler is needed for the replay server (on Debian or Ubuntu: apt install gcc)"
        )
    program = directory / name
    made = subprocess.run(
        [compiler, *FLAGS, str(SOURCES / f"{name}.c"), "-o", str(program), "-lm"],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NoCompiler(f"{name}.c, for Linux only, cannot be built:\n{made.stderr}")
    return program


@dataclass(frozen=True)
class Server:
    """It runs. `closings` are its lines of the clients that it saw leave, so far as they were read."""

    port: int
    _said: IO[str]
    _process: subprocess.Popen[str]

    def closings(self) -> dict[int, int]:
        """Ends the server: when it saw each client leave, by the length that was asked for."""
        self._process.terminate()
        lines = [line.split() for line in self._said if line.startswith("closed ")]
        return {int(asked): int(at_ns) for _, at_ns, _, asked in lines}


@contextmanager
def serve(program: Path, core: int, options: Sequence[str], *, ahead: bool) -> Iterator[Server]:
    """The server, while it runs; `ahead` of other work on the machine, if it may."""
    server = subprocess.Popen([str(program), *options], stdout=subprocess.PIPE, text=True)
    with server:
        try:
            prefer(server.pid, core, ahead=ahead)
            assert server.stdout is not None
            yield Server(int(server.stdout.readline().split()[1]), server.stdout, server)
        finally:
            server.kill()


def prefer(pid: int, core: int, *, ahead: bool) -> None:
    """Pin a process to a core and, where asked, put it ahead of others. Raises PermissionError."""
    os.sched_setaffinity(pid, {core})
    if ahead:
        os.setpriority(os.PRIO_PROCESS, pid, -19)
