"""What a daemon says, byte by byte, and the shape of it: for comparing a pretended answer with a recorded one."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Self

from ollama_adapter.config import LOOPBACK

WATCHDOG_S = 30.0
SPOKEN = ("error", "done", "done_reason", "role", "status", "remote_model", "version")
"""Fields whose very words are compared; of the others only the kind."""


@dataclass
class Heard:
    """The bytes of one answer, and how it ended: complete, EOF, RST, or None while it is under way."""

    wire: bytes = b""
    end: str | None = None

    @property
    def head(self) -> list[str]:
        return self.wire.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")

    @property
    def status(self) -> int | None:
        return int(self.head[0].split(" ")[1]) if self.wire else None

    @property
    def body(self) -> bytes:
        return self.wire.partition(b"\r\n\r\n")[2]

    @property
    def chunked(self) -> bool:
        return any(each.lower() == "transfer-encoding: chunked" for each in self.head)

    def records(self) -> list[dict[str, Any]]:
        """The whole records that came, in whole chunks or not."""
        text = chunks(self.body)[0] if self.chunked else self.body
        *lines, rest = text.split(b"\n")
        lines += [] if self.chunked else [rest]
        return [json.loads(each) for each in lines if each]

    def text(self) -> str:
        parts = []
        for each in self.records():
            said = each.get("message", each)
            parts.append(said.get("content", "") or said.get("response", ""))
        return "".join(parts)


def chunks(body: bytes) -> tuple[bytes, bool]:
    """The text of a chunked body, and whether its last chunk came."""
    text = b""
    while body:
        size_text, line_end, rest = body.partition(b"\r\n")
        size = int(size_text, 16)
        if not line_end:
            break
        if size == 0:
            return text, rest == b"\r\n"
        text += rest[:size]
        body = rest[size + 2 :]
    return text, False


class Conversation:
    """One connection to a daemon, by hand."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.heard = Heard()

    @classmethod
    async def open(cls, port: int) -> Conversation:
        connection = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(connection, (LOOPBACK, port))
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    async def say(self, method: str, path: str, body: bytes, *headers: str) -> None:
        lines = [f"{method} {path} HTTP/1.1", f"Host: {LOOPBACK}", *headers]
        if "Transfer-Encoding: chunked" not in headers:
            lines.append(f"Content-Length: {len(body)}")
        head = "\r\n".join(lines).encode() + b"\r\n\r\n"
        await asyncio.get_running_loop().sock_sendall(self.socket, head + body)

    async def hear(self, enough: Callable[[Heard], object] = lambda _: False) -> Heard:
        """Until the answer has ended, or there is enough of it."""
        heard, loop = self.heard, asyncio.get_running_loop()
        async with asyncio.timeout(WATCHDOG_S):
            while heard.end is None and not enough(heard):
                try:
                    data = await loop.sock_recv(self.socket, 65536)
                except ConnectionResetError:
                    heard.end = "RST"
                    break
                heard.wire += data
                if not data:
                    heard.end = "EOF"
                elif _is_whole(heard):
                    heard.end = "complete"
        return heard

    def close(self) -> None:
        self.socket.close()


def _is_whole(heard: Heard) -> bool:
    if b"\r\n\r\n" not in heard.wire:
        return False
    if heard.chunked:
        return heard.wire.endswith(b"\r\n0\r\n\r\n")
    sizes = [each for each in heard.head if each.lower().startswith("content-length")]
    return bool(sizes) and len(heard.body) >= int(sizes[0].split(": ")[1])


async def ask(port: int, path: str, body: Any = b"", method: str = "POST") -> Heard:
    """One request on a connection of its own, heard to its end."""
    with await Conversation.open(port) as conversation:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        await conversation.say(method, path, data)
        return await conversation.hear()


def shape(heard: Heard, *, counted: bool = False) -> list[Any]:
    """Everything about an answer that does not depend on what a model happens to say.

    The names of the headers and of the fields in their order, the kinds of the values, how it ended;
    `counted`: also how many equal records stand in a row.
    """
    if not heard.wire:
        return [heard.end]
    names = [each.split(":")[0] for each in heard.head[1:]]
    kind = next((each for each in heard.head if each.startswith("Content-Type")), "")
    ended = chunks(heard.body)[1] if heard.chunked else None
    try:
        skeletons = [skeleton(each) for each in heard.records()]
    except ValueError:
        skeletons = [heard.body.decode("utf-8", "replace")]
    runs = [(each, len(list(run))) for each, run in groupby(skeletons, key=str)]
    lines = runs if counted else [each for each, _ in runs]
    return [heard.head[0], names, kind, lines, ended, heard.end]


def skeleton(value: Any, name: str = "") -> Any:
    """A JSON value without what it says."""
    if isinstance(value, dict):
        return [(key, skeleton(each, key)) for key, each in value.items()]
    if isinstance(value, list):
        kinds = [skeleton(each) for each in value]
        whole = [each for each in kinds if not any(_lacks(each, other) for other in kinds)]
        return sorted({str(each) for each in whole})
    if name in SPOKEN:
        return value
    return type(value).__name__.replace("int", "number").replace("float", "number")


def _lacks(kind: Any, other: Any) -> bool:
    """`kind` is `other` without a field or two: an entry whose token shows no text has no bytes."""
    return isinstance(kind, list) and len(kind) < len(other) and all(each in other for each in kind)
