"""The daemon's process: from its environment to its exit code.

It listens on 127.0.0.1 only, writes no log, and leaves with 0 at SIGTERM or SIGINT when all its runners
are gone. Answers under way are cut, as Ollama cuts them. It leaves with os._exit: nothing is left to do
that is worth a wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Final

import uvicorn

from ollama_adapter.config import DEFAULT_PORT, LOOPBACK, parse_host
from ollama_adapter.embedded.app import App
from ollama_adapter.embedded.orders import Orders, Plain
from ollama_adapter.embedded.scheduler import Scheduler
from ollama_adapter.embedded.service import Service
from ollama_adapter.embedded.settings import Settings, default_models_dir
from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import AdapterError, PortTaken

_BACKLOG: Final = 512
_IDLE_CONNECTION_S: Final = 3600


def run(begun: tuple[socket.socket, subprocess.Popen[bytes]] | None = None) -> int:
    """Listen and serve until told to stop; 1 where that cannot be. `begun`: who starts the runners."""
    try:
        sock = listen(os.environ.get("OLLAMA_HOST", ""))
    except AdapterError as error:
        hint = f"; {error.hint}" if error.hint else ""
        sys.stderr.write(f"Error: {error}{hint}\n")
        return 1
    asyncio.run(_serve(sock, None if begun is None else Orders(*begun)))
    return 0


def listen(address: str) -> socket.socket:
    """A socket that listens at an OLLAMA_HOST value; NotLoopback, ConfigError or PortTaken."""
    host, port = parse_host(address) if address.strip() else (LOOPBACK, DEFAULT_PORT)
    sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(_BACKLOG)
    except OSError as error:
        sock.close()
        reason = (error.strerror or "failed").lower()
        raise PortTaken(f"listen tcp {host}:{port}: bind: {reason}") from error
    sock.setblocking(False)
    return sock


def _end_without_starter() -> None:
    """No model can be loaded any more; whoever keeps this daemon starts another."""
    sys.stderr.write("Error: the process that starts the model runners has ended\n")
    os._exit(1)


def _hold(models: Path) -> None:
    """For as long as we live: what a daemon serves, `purge` does not remove (system/belongings.py)."""
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        models.mkdir(parents=True, exist_ok=True)
        fcntl.flock(os.open(models, os.O_RDONLY), fcntl.LOCK_SH)


def _give_up(models: Path) -> None:
    """All that serving does not need: programs, sockets, files but models and our own code.

    Where the kernel cannot take one of these, the jail around us stays all there is.
    """
    from ollama_adapter.system.jail import seal
    from ollama_adapter.system.jail.paths import FACTS, HARDWARE, LIBRARIES, python_paths

    store = [models, *(models / each for each in ("blobs", "manifests"))]  # they may be links
    with contextlib.suppress(OSError):
        seal.keep_to_files(
            [*python_paths(), *LIBRARIES, *FACTS, *HARDWARE, "/sys/fs/cgroup"], map(str, store)
        )
    with contextlib.suppress(OSError):
        seal.serve_only()


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield  # signals are ours


async def _serve(sock: socket.socket, orders: Orders | None) -> None:
    settings = Settings.parse(os.environ)
    store = Store(default_models_dir(os.environ, Path.home()))
    told = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, told.set)
    _hold(store.root)
    if orders is not None:
        orders.attach(_end_without_starter)
        _give_up(store.root)
    async with asyncio.TaskGroup() as group:
        scheduler = Scheduler(group, settings.limits, orders.start if orders else Plain.start)
        app = App(Service(store, scheduler, settings), group)
        config = uvicorn.Config(
            app,
            http="httptools",
            loop="asyncio",
            ws="none",
            lifespan="off",
            log_config=None,
            log_level="critical",
            access_log=False,
            server_header=False,
            timeout_keep_alive=_IDLE_CONNECTION_S,
        )
        group.create_task(_Server(config).serve(sockets=[sock]))
        await told.wait()
        await scheduler.aclose()
        os._exit(0)
