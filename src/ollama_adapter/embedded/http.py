"""One HTTP exchange of the daemon: a request read, an answer sent, and the client's leaving noticed.

The status goes out with the first bytes of the answer; what fails after that becomes an error line in
the stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any, Final

from ollama_adapter.embedded.records import go_json
from ollama_adapter.embedded.values import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

JSON: Final = b"application/json; charset=utf-8"
NDJSON: Final = b"application/x-ndjson"
TEXT: Final = b"text/plain"
MAX_BODY: Final = 1 << 26


class ClientGone(Exception):
    """The client closed the connection."""


class Exchange:
    """A request and its answer."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, group: asyncio.TaskGroup, cors: list[Any]
    ) -> None:
        self.method: str = scope["method"]
        self.path: str = scope["path"]
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self._receive = receive
        self._send = send
        self._group = group
        self._cors = cors
        self.begun = self._ended = self._gone = False

    # The request

    async def chunks(self) -> AsyncIterator[bytes]:
        """The body as it comes; raises ClientGone."""
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            yield message.get("body", b"")

    async def body(self) -> bytes:
        """The whole body."""
        parts, size = [], 0
        async for part in self.chunks():
            parts.append(part)
            size += len(part)
            if size > MAX_BODY:
                raise ApiError(413, "http: request body too large")
        return b"".join(parts)

    @contextlib.asynccontextmanager
    async def until_gone(self) -> AsyncIterator[None]:
        """Cancel the block when the client leaves; it ends with ClientGone then."""
        task = asyncio.current_task()
        assert task is not None
        watcher = self._group.create_task(self._watch(task))
        try:
            yield
        except asyncio.CancelledError:
            if self._gone:
                task.uncancel()
                raise ClientGone from None
            raise
        finally:
            watcher.cancel()

    async def _watch(self, task: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self._ended:  # the end of the answer reads as a disconnect too
            self._gone = True
            task.cancel()

    # The answer

    async def json(self, body: bytes, status: int = 200) -> None:
        """A whole answer, JSON already."""
        await self.whole(status, body, JSON)

    async def value(self, value: Any, status: int = 200) -> None:
        """A whole answer, from a value."""
        await self.json(go_json(value), status)

    async def whole(self, status: int, body: bytes = b"", kind: bytes = b"", *extra: Any) -> None:
        headers = [*self._cors, *extra, (b"content-length", b"%d" % len(body))]
        if kind:
            headers.append((b"content-type", kind))
        self.begun = self._ended = True
        await self._send({"type": "http.response.start", "status": status, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    async def record(self, record: bytes, *, last: bool = False) -> None:
        """One line of a stream, one HTTP chunk; the first one takes the head along."""
        if not self.begun:
            self.begun = True
            headers = [*self._cors, (b"content-type", NDJSON)]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        self._ended = last
        line = record if record.endswith(b"\n") else record + b"\n"
        await self._send({"type": "http.response.body", "body": line, "more_body": not last})

    async def error(self, error: ApiError) -> None:
        """The error as a whole answer, or as the last line of a stream that has begun."""
        if self.begun:
            await self.record(go_json({"error": error.message}), last=True)
        else:
            await self.value({"error": error.message}, error.status)
