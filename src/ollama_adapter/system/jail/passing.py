"""The application's end of a jail's way in: connected sockets that come out of it, one per request."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable
from typing import Any, Final

from ollama_adapter.errors import ConnectFailed

MESSAGE_BYTES: Final = 4096


class Doorway:
    """Requests are numbered; each is answered with a socket, or a reason why there is none."""

    def __init__(self, channel: socket.socket, ask: Callable[[int], None]) -> None:
        self._channel = channel
        self._ask = ask
        self._number = 0
        self._waiting: dict[int, asyncio.Future[socket.socket]] = {}
        self._loop = asyncio.get_running_loop()
        channel.setblocking(False)
        self._loop.add_reader(channel, self._on_answer)

    async def dial(self) -> socket.socket:
        """A connected, non-blocking socket. Raises ConnectFailed. Cancelling is safe."""
        if self._channel.fileno() < 0:
            raise ConnectFailed("the daemon in the jail has ended")
        self._number += 1
        number = self._number
        answer: asyncio.Future[socket.socket] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._ask(number)
            return await answer
        except BaseException:
            if answer.done() and not answer.cancelled() and answer.exception() is None:
                answer.result().close()
            raise
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        """Who waits is told. Idempotent."""
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)  # nothing, where it is closed
            self._channel.close()
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(ConnectFailed("the daemon in the jail has ended"))

    def _on_answer(self) -> None:
        try:
            data, fds, _, _ = socket.recv_fds(self._channel, MESSAGE_BYTES, 1)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.close()
            return
        message: dict[str, Any] = json.loads(data)
        answer = self._waiting.get(message["id"])
        if answer is None or answer.done():  # whoever asked has gone
            for fd in fds:
                os.close(fd)
        elif fds:
            answer.set_result(_adopt(fds[0]))
        else:
            reason = message.get("reason", "no socket came")
            answer.set_exception(ConnectFailed(f"no connection into the jail: {reason}"))


def _adopt(fd: int) -> socket.socket:
    os.set_inheritable(fd, False)
    connection = socket.socket(fileno=fd)
    connection.setblocking(False)
    return connection
