"""Connections over the loopback: to 127.0.0.1 and a port, and to nowhere else."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import cast

from ollama_adapter.config import LOOPBACK
from ollama_adapter.errors import ConnectFailed, NotLoopback

Dial = Callable[[], Awaitable[socket.socket]]
"""Gives a connected socket: over the loopback, or out of a jail."""


def dial_port(port: int) -> Dial:
    """Connections to 127.0.0.1:port."""

    async def dial() -> socket.socket:
        connection: socket.socket | None = None
        try:
            connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if not _connects_at_once(connection, port):
                await asyncio.get_running_loop().sock_connect(connection, (LOOPBACK, port))
            peer = connection.getpeername()
            if peer[0] != LOOPBACK:
                raise NotLoopback(f"the peer of the connection is not {LOOPBACK}")
            if peer == connection.getsockname():  # TCP may connect a free port to itself
                raise ConnectFailed(f"nothing listens on {LOOPBACK}:{port}")
        except OSError as error:
            _close(connection)
            raise ConnectFailed(
                f"no connection to {LOOPBACK}:{port}: {error.strerror or type(error).__name__}"
            ) from error
        except BaseException:
            _close(connection)
            raise
        return connection

    return dial


def _connects_at_once(connection: socket.socket, port: int) -> bool:
    """The system says that it has begun; over the loopback it has then nearly always ended, too."""
    with suppress(BlockingIOError):
        connection.connect((LOOPBACK, port))
        return True
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def _close(connection: socket.socket | None) -> None:
    if connection is not None:
        connection.close()


def find_free_port() -> int:
    """A loopback port that nobody holds at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return cast(int, probe.getsockname()[1])
