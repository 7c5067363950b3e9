"""HTTP/1.1 as Ollama's server frames it: requests taken from a buffer, heads of answers, chunks; pure.

It reads what clients send, and is not made to withstand what attackers do.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import format_datetime
from typing import Any, Final

from ollama_adapter.embedded.records import go_json
from ollama_adapter.testing.faults import reason
from ollama_adapter.testing.scripted import ScriptedRequest

JSON: Final = "application/json; charset=utf-8"
NDJSON: Final = "application/x-ndjson"
TEXT: Final = "text/plain"
_HEAD_END: Final = b"\r\n\r\n"
_CLOSE: Final = "Connection: close"


def take_request(buffer: bytearray) -> ScriptedRequest | None:
    """The first request in `buffer`, which loses it; None while it is not whole."""
    end = buffer.find(_HEAD_END)
    if end < 0:
        return None
    first, *lines = buffer[:end].decode("latin-1").split("\r\n")
    method, path, _ = f"{first}  ".split(" ", 2)
    pairs = (line.partition(":") for line in lines)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    start = end + len(_HEAD_END)
    if headers.get("transfer-encoding", "").lower() == "chunked":
        body, after = _dechunk(buffer, start)
    else:
        length = headers.get("content-length", "0")
        after = start + (int(length) if length.isdecimal() else 0)
        body = bytes(buffer[start:after])
    if after is None or len(buffer) < after:
        return None
    del buffer[:after]
    return ScriptedRequest(method, path.partition("?")[0], headers, body)


def _dechunk(buffer: bytearray, at: int) -> tuple[bytes, int | None]:
    """A chunked body and where it ends; None while it is not whole."""
    body = b""
    while (line_end := buffer.find(b"\r\n", at)) >= 0:
        size = int(buffer[at:line_end].partition(b";")[0] or b"0", 16)
        at = line_end + 2 + size + 2
        if size == 0:
            return body, at
        body += buffer[line_end + 2 : at - 2]
    return body, None


def whole_head(status: int, headers: list[str], length: int, *, closes: bool) -> bytes:
    """The head of an answer whose length is known."""
    lines = [*headers, _date(), f"Content-Length: {length}", *([_CLOSE] if closes else [])]
    return _head(status, lines)


def stream_head(*, closes: bool) -> bytes:
    """The head of a stream of records."""
    close = [_CLOSE] if closes else []
    return _head(200, [f"Content-Type: {NDJSON}", _date(), *close, "Transfer-Encoding: chunked"])


def _head(status: int, headers: list[str]) -> bytes:
    lines = [f"HTTP/1.1 {status} {reason(status)}", *headers]
    return "\r\n".join(lines).encode("latin-1") + _HEAD_END


def _date() -> str:
    return f"Date: {format_datetime(datetime.now(UTC), usegmt=True)}"


def chunked(line: bytes) -> bytes:
    """A line of a stream as Ollama sends it: one HTTP chunk."""
    return b"%x\r\n%b\r\n" % (len(line), line)


def record_line(record: Any) -> bytes:
    """A record as it stands in a stream."""
    return go_json(record) + b"\n"
