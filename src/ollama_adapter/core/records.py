"""The wire: NDJSON records of /api/generate and /api/chat, typed and framed.

`RecordDecoder` turns any slicing of the same bytes into the same records. Lines end at the byte \\n
and nowhere else (a JSON string may hold U+2028). Only the fields that somebody reads are decoded.
A line is at most MAX_LINE bytes, not counting the echo of the context in a last record, which may
have millions of numbers: it is counted and dropped as it comes, never kept.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Final, Generic, TypeVar

import msgspec

from ollama_adapter.errors import ProtocolError
from ollama_adapter.events import Candidate
from ollama_adapter.veiled import Veiled

MAX_LINE: Final = 4 << 20
LONG_LINE: Final = 64 << 10  # from here on it is worth looking for the context
CONTEXT_KEY: Final = b'"context":['  # inside a JSON string the quotes would be escaped
CONTEXT_BYTES: Final = b"0123456789,"


Count = Annotated[int, msgspec.Meta(ge=-(1 << 63), le=(1 << 63) - 1)]
"""What Go holds in 64 bits: a number of a thousand digits is refused, not computed with."""


class LogprobEntry(Veiled, msgspec.Struct, gc=False):
    """The token chosen and, where asked for, the most probable ones. Values precede temperature."""

    token: str
    logprob: float
    top_logprobs: list[Candidate] = msgspec.field(default_factory=list)


class DebugInfo(Veiled, msgspec.Struct, gc=False):
    """The answer to `_debug_render_only`: the prompt as the model would get it."""

    rendered_template: str = ""


class Record(msgspec.Struct, gc=False):
    """What a line of either endpoint may say; durations in nanoseconds."""

    done: bool = False
    logprobs: list[LogprobEntry] | None = None
    error: Any = None
    token_ids: tuple[Count, ...] | None = None  # the embedded daemon only
    done_reason: str = ""
    remote_host: str = ""
    context: msgspec.Raw = msgspec.Raw(b"")
    debug_info: DebugInfo | None = msgspec.field(default=None, name="_debug_info")
    total_duration: Count = 0
    load_duration: Count = 0
    prompt_eval_count: Count = 0
    prompt_eval_duration: Count = 0
    eval_count: Count = 0
    eval_duration: Count = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__} done={self.done}>"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [("done", self.done)]


class GenerateRecord(Record, gc=False):
    """One line of /api/generate."""

    response: str = ""
    thinking: str = ""


class Message(Veiled, msgspec.Struct, gc=False):
    """The piece of an answer that a chat record carries."""

    content: str = ""
    thinking: str = ""
    tool_calls: list[dict[str, Any]] | None = None


class ChatRecord(Record, gc=False):
    """One line of /api/chat."""

    message: Message | None = None


R = TypeVar("R", GenerateRecord, ChatRecord)

_DECODERS: Final[dict[type[Record], msgspec.json.Decoder[Any]]] = {
    kind: msgspec.json.Decoder(kind) for kind in (GenerateRecord, ChatRecord)
}


class RecordDecoder(Generic[R]):
    """Bytes in, records out. It never raises: `failure` says what came after the good records.

    So the records before a broken line are delivered however the bytes were cut.
    """

    __slots__ = (
        "_decode",
        "_echoes",
        "_in_context",
        "_line",
        "_looked",
        "context_tokens",
        "failure",
        "over",
    )

    def __init__(self, kind: type[R]) -> None:
        self._decode: Callable[[bytes], R] = _DECODERS[kind].decode
        self._echoes = kind is GenerateRecord  # a tool's arguments may have a "context" too
        self._line = bytearray()
        self._looked = 0
        self._in_context = False
        self.over = False  # the last record has come
        self.context_tokens = 0
        self.failure: ProtocolError | None = None

    def feed(self, data: bytes) -> list[R]:
        """The records that `data` completes."""
        if self.failure is not None:
            return []
        if len(data) > LONG_LINE:  # the limit of a line must not depend on how it was cut
            pieces = (data[at : at + LONG_LINE] for at in range(0, len(data), LONG_LINE))
            return [record for piece in pieces for record in self.feed(piece)]
        lines = data.split(b"\n")
        rest = lines.pop()
        records: list[R] = []
        if lines:
            if self._line:
                self._keep(lines[0])
                lines[0] = self._take()
            records = self._decode_all(lines)
        if rest:
            self._keep(rest)
        return records

    def finish(self) -> list[R]:
        """The record of a last line without an end of line (a single JSON answer has none)."""
        rest = self._take()
        return self._decode_all([rest]) if rest.strip() and self.failure is None else []

    def _decode_all(self, lines: list[bytes]) -> list[R]:
        if self.failure is not None:
            return []
        try:
            records = list(map(self._decode, lines))
        except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
            records = self._decode_until_broken(lines)
        if records:
            if self.over or len(records) > 1:
                self._end_with_the_last(records)
            self.over = self.over or records[-1].done
        return records

    def _decode_until_broken(self, lines: list[bytes]) -> list[R]:
        """Line by line: the records before a broken one count."""
        records: list[R] = []
        for line in lines:
            try:
                if line.strip():  # a blank one is no record
                    records.append(self._decode(line))
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                self.failure = ProtocolError(_fault(error))
                break
        return records

    def _end_with_the_last(self, records: list[R]) -> None:
        """What follows it would pass for a part of the answer."""
        whole = [n for n, each in enumerate(records, 1) if each.done]
        fits = 0 if self.over else whole[0] if whole else len(records)
        if fits < len(records):
            del records[fits:]
            self.failure = ProtocolError("the daemon went on after its last record")

    def _keep(self, part: bytes) -> None:
        self._line += self._drop_context(part) if self._in_context else part
        if len(self._line) > LONG_LINE and self._echoes and not self._in_context:
            self._look_for_context()
        if len(self._line) > MAX_LINE:
            self._take()
            self.failure = ProtocolError(f"the daemon sent a line of over {MAX_LINE >> 20} MiB")

    def _take(self) -> bytes:
        line = bytes(self._line)
        self._line.clear()
        self._looked = 0
        self._in_context = False
        return line

    def _look_for_context(self) -> None:
        """No byte is looked at twice, but for a key that was cut."""
        start = self._line.find(CONTEXT_KEY, self._looked)
        if start < 0:
            self._looked = len(self._line) - len(CONTEXT_KEY) + 1
        else:
            self._looked = start + len(CONTEXT_KEY)
            self._line[self._looked :] = self._drop_context(bytes(self._line[self._looked :]))

    def _drop_context(self, part: bytes) -> bytes:
        tail = part.lstrip(CONTEXT_BYTES)
        dropped = len(part) - len(tail)
        if dropped:
            self.context_tokens = max(self.context_tokens, 1) + part.count(b",", 0, dropped)
        self._in_context = not tail
        return tail


def _fault(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "the daemon sent JSON nested too deeply"
    if isinstance(error, UnicodeDecodeError):
        return "the daemon sent text that is not UTF-8"
    return "the daemon sent a line that is not a record"


def context_length(record: Record, dropped: int) -> int:
    """How many tokens the daemon's echo of the context held; 0 when it sent none."""
    raw = bytes(record.context)
    return dropped or (raw.count(b",") + 1 if raw.startswith(b"[") and raw != b"[]" else 0)
