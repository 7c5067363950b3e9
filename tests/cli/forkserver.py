"""A process that has imported the command, and forks for each run of it: importing is most of what a run costs.

A fork is a process of its own, with the files, the environment and the directory that are asked for, and goes on
as `python -m ollama_adapter` does. What Python and the command do before that, only a real start shows.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
from collections.abc import Sequence
from typing import Any

import ollama_adapter.cli

LATE = (
    *("asyncio", "importlib.metadata", "psutil"),
    *("ollama_adapter.embedded.importer", "ollama_adapter.orchestrator"),
    "ollama_adapter.system.spawning",
)
"""What a command imports when it is needed."""


def main() -> None:
    """Serve the socket whose number is the argument until it is closed; each fork goes on as the command."""
    prepare()
    with socket.socket(fileno=int(sys.argv[1])) as control:
        order = serve(control)
    if order is None:
        return
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(order["environment"])
    os.chdir(order["directory"])
    sys.path[0] = order["directory"]
    sys.argv = ["ollama-adapter", *order["arguments"]]
    runpy.run_module("ollama_adapter", run_name="__main__", alter_sys=True)


def prepare() -> None:
    modules = pkgutil.walk_packages(ollama_adapter.cli.__path__, "ollama_adapter.cli.")
    for name in (*LATE, *(each.name for each in modules)):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()


def serve(control: socket.socket) -> dict[str, Any] | None:
    """In the server, None at the end; in a fork, what to run. Whoever looks after a fork returns never."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those who look after forks are nobody's to reap
    while True:
        _, files, _, _ = socket.recv_fds(control, 1, 4)
        if not files:
            return None
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            return look_after(files)
        for each in files:
            os.close(each)


def look_after(files: Sequence[int]) -> dict[str, Any]:
    """In the fork, what to run. The other waits for it, and tells its code; if nobody waits, it kills it."""
    *standard, number = files
    with socket.socket(fileno=number) as waiting, waiting.makefile("rb") as lines:
        order: dict[str, Any] = json.loads(lines.readline())
        child = os.fork()
        if child == 0:
            for place, each in enumerate(standard):
                os.dup2(each, place)
            return order
        for each in standard:
            os.close(each)
        ended = os.pidfd_open(child)
        if ended not in select.select([ended, waiting.fileno()], [], [])[0]:
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        try:
            waiting.sendall(b"%d\n" % code)
        finally:
            os._exit(0)


if __name__ == "__main__":
    main()
