"""A download by the daemon itself, as the records of its /api/pull tell it: many files, one total."""

from __future__ import annotations

from typing import Final

import msgspec

from ollama_adapter.errors import ProtocolError, PullFailed

MAX_LINE_BYTES: Final = 1 << 16
MAX_FILES: Final = 1024


class _Record(msgspec.Struct):
    status: str = ""
    error: str = ""
    digest: str = ""
    total: int = 0
    completed: int = 0


class Relayed:
    """Feed it the body, however it is sliced. `done` never goes back; `total` grows as files are named."""

    def __init__(self, model: str) -> None:
        self._model = model
        self._rest = b""
        self._files: dict[str, tuple[int, int]] = {}
        self.done = self.total = 0
        self.status = ""

    @property
    def succeeded(self) -> bool:
        return self.status == "success"

    def feed(self, data: bytes) -> None:
        """Raises PullFailed for the daemon's error, ProtocolError for what is no record."""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE_BYTES:
            raise ProtocolError("the daemon sent an endless line")
        for line in lines:
            if line:
                self._take(_decode(line))

    def _take(self, record: _Record) -> None:
        if record.error:
            raise PullFailed(
                f"the daemon could not download {self._model}: {record.error[:300]}",
                hint="what it has downloaded it keeps: pull again; its own log tells more",
            )
        self.status = record.status
        if record.digest and record.total >= 0 and len(self._files) < MAX_FILES:
            before = self._files.get(record.digest, (0, 0))[0]
            completed = min(max(before, record.completed), record.total)
            self._files[record.digest] = (completed, record.total)
        self.done = max(self.done, sum(done for done, _ in self._files.values()))
        self.total = max(self.total, self.done, sum(total for _, total in self._files.values()))


def _decode(line: bytes) -> _Record:
    try:
        return msgspec.json.decode(line, type=_Record)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise ProtocolError("the daemon's answer is no record of a download") from None
