"""How long the daemon is made to wait for a reader.

A reader that is slow but reads is waited for, however long it takes. One that has not taken a token for
the limit, with its buffer full, is gone: it holds the daemon's slot, and everybody behind it.
"""

from __future__ import annotations

from ollama_adapter.errors import ReaderGone


class Patience:
    """With one reader. A limit of 0 has no end. Nothing is counted per token: it is asked now and then."""

    __slots__ = ("_limit_s", "_session_id", "_since_ns", "_waiting")

    def __init__(self, limit_s: float, session_id: str = "") -> None:
        self._limit_s = limit_s
        self._session_id = session_id
        self._waiting = -1
        self._since_ns = 0

    def check(self, waiting: int, now_ns: int) -> None:
        """`waiting` tokens wait in a buffer that is full. Raises ReaderGone.

        Tokens come in no more then, so a change of `waiting` is a reader that reads.
        """
        if waiting != self._waiting:
            self._waiting, self._since_ns = waiting, now_ns
        elif self._limit_s and now_ns - self._since_ns >= self._limit_s * 1e9:
            raise ReaderGone(
                f"nobody has read this stream for {self._limit_s:g} s, while the daemon waited",
                session_id=self._session_id,
                hint="use `async with` for streams; stream.reader_s is the limit, and 0 is none",
            )

    def reset(self) -> None:
        """The buffer is not full any more."""
        self._waiting = -1
