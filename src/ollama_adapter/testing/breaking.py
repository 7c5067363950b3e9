"""The faults that cut an answer, carried out: for a stream of records, and for an answer in one piece.

Each has the shape on the wire that the real daemon has in the same trouble; tests compare them with
recordings of it. `Cut.strike` is True when the answer goes on after all.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from ollama_adapter.embedded.records import go_json
from ollama_adapter.testing.connection import Connection
from ollama_adapter.testing.faults import Fault, FaultKind
from ollama_adapter.testing.framing import chunked, record_line

RUNNER_DIED: Final = "an error was encountered while running the model: unexpected EOF"
REPEATS: Final = 31
GARBAGE: Final = b'{"model":"pretend","resp\x00\xff onse"!\n'
_REPEATED: Final = " sing"
_WIDE: Final = "川"
_MORE: Final = 64
"""How many bytes are promised that never come."""

Make = Callable[[str], dict[str, Any]]
"""The record that adds a text to the answer; for an answer in one piece, that is one."""
Stall = Callable[[Fault], Awaitable[None]]
Die = Callable[[Fault], None]


class Cut:
    """What a fault needs to happen to one answer."""

    def __init__(
        self, connection: Connection, make: Make, stall: Stall, die: Die, *, stream: bool
    ) -> None:
        self._connection = connection
        self._make = make
        self._stall = stall
        self._die = die
        self._stream = stream

    async def strike(self, fault: Fault, last: str, line: bytes) -> bool:
        """Carry out `fault` after the token `last`, in place of `line`. True when the answer goes on."""
        match fault.kind:
            case FaultKind.STALL:
                await self._stall(fault)
                return True
            case FaultKind.RST:
                await self._connection.reset()
            case FaultKind.EOF:
                self._connection.close()
            case FaultKind.DIE:
                self._die(fault)
            case _ if self._stream:
                self._break_stream(fault.kind, last, line)
            case _:
                self._break_whole(fault.kind, last)
        return False

    def _break_stream(self, kind: FaultKind, last: str, line: bytes) -> None:
        connection = self._connection
        if kind is FaultKind.ERROR_LINE and not connection.streaming:
            return connection.value(500, {"error": RUNNER_DIED})
        connection.open_stream()
        match kind:
            case FaultKind.ERROR_LINE:
                connection.write(chunked(record_line({"error": RUNNER_DIED})))
            case FaultKind.REPEAT:
                again = chunked(record_line(self._make(last or _REPEATED)))
                connection.write(again * (REPEATS - 1 if last else REPEATS))
            case FaultKind.GARBAGE:
                connection.write(chunked(GARBAGE))
            case FaultKind.HALF_UTF8:
                connection.write(_half_a_character(chunked(record_line(self._make(_WIDE)))))
                return connection.close()
            case FaultKind.HALF_JSON:
                whole = chunked(line)
                connection.write(whole[: len(whole) // 2])
                return connection.close()
            case FaultKind.TRUNCATED_CHUNK:
                connection.write(b"%x\r\n%b" % (len(line) + _MORE, line))
                return connection.close()
        connection.end_stream()

    def _break_whole(self, kind: FaultKind, last: str) -> None:
        connection = self._connection
        match kind:
            case FaultKind.ERROR_LINE:
                return connection.value(500, {"error": RUNNER_DIED})
            case FaultKind.NO_DONE:
                return connection.value(200, self._make(""))
            case FaultKind.REPEAT:
                again = last * (REPEATS - 1) if last else _REPEATED * REPEATS
                return connection.value(200, self._make(again))
            case FaultKind.GARBAGE:
                return connection.answer(200, GARBAGE)
        body = go_json(self._make(_WIDE if kind is FaultKind.HALF_UTF8 else ""))
        sent = body
        if kind is FaultKind.HALF_UTF8:
            sent = _half_a_character(body)
        elif kind is FaultKind.HALF_JSON:
            sent = body[: len(body) // 2]
        connection.answer(200, sent, length=len(body) + _MORE)
        connection.close()


def _half_a_character(data: bytes) -> bytes:
    """Up to the last wide character, and one of its bytes."""
    return data[: data.rindex(_WIDE.encode()) + 1]
