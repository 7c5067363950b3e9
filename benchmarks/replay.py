"""Builds and runs the replay server (replay.c), pinned to a core."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

SOURCE: Final = Path(__file__).with_name("replay.c")
FLAGS: Final = ("-O2", "-std=gnu11")


class NoCompiler(Exception):
    """There is nothing to build the server with, or it cannot be built here."""


def build(directory: Path) -> Path:
    """The server's program, made in `directory` with the system's C compiler."""
    candidates = map(shutil.which, (os.environ.get("CC") or "cc", "gcc", "clang"))
    compiler = next(filter(None, candidates), None)
    if compiler is None:
        raise NoCompiler(
            "a C compiler is needed for the replay server (on Debian or Ubuntu: apt install gcc)"
        )
    program = directory / "replay"
    made = subprocess.run(
        [compiler, *FLAGS, str(SOURCE), "-o", str(program)],
        capture_output=True,
        text=True,
        check=False,
    )
    if made.returncode:
        raise NoCompiler(f"the replay server, for Linux only, cannot be built:\n{made.stderr}")
    return program


@contextmanager
def serve(program: Path, core: int, *, batch: int, rate: float, logprobs: bool) -> Iterator[int]:
    """Its port, while it runs."""
    argv = [str(program), "--batch", str(batch), "--rate", str(rate)]
    server = subprocess.Popen(
        [*argv, "--logprobs"] if logprobs else argv, stdout=subprocess.PIPE, text=True
    )
    with server:
        try:
            os.sched_setaffinity(server.pid, {core})
            assert server.stdout is not None
            yield int(server.stdout.readline().split()[1])
        finally:
            server.kill()
