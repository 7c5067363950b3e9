"""Two ways from one writer to one reader: Channel loses nothing and pushes back, Latest skips.

A Channel never blocks its writer: it calls `on_full` when its fill passes the limits and `on_drained`
when the reader has emptied half of it, and the writer stops reading its socket in between.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


def _nothing() -> None:
    """Nobody has to be told."""


class Channel(Generic[T]):
    """Lossless. The items are handed out in order, then the end: None, or an error raised once."""

    __slots__ = (
        "_bytes",
        "_ended",
        "_error",
        "_full",
        "_items",
        "_max_bytes",
        "_max_items",
        "_reader",
        "on_drained",
        "on_full",
        "__weakref__",
    )

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._items: deque[tuple[T, int]] = deque()
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._full = False
        self._ended = False
        self._error: BaseException | None = None
        self._reader: asyncio.Future[None] | None = None
        self.on_full: Callable[[], None] = _nothing
        self.on_drained: Callable[[], None] = _nothing

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        """The writer has been told to wait."""
        return self._full

    def put(self, item: T, size: int) -> None:
        """Add an item of `size` bytes; never waits. The reader wakes at `flush`."""
        self._items.append((item, size))
        self._bytes += size

    def put_all(self, items: Iterable[T], sizes: Sequence[int]) -> None:
        """The same for the items of a whole read."""
        self._items += zip(items, sizes, strict=True)
        self._bytes += sum(sizes)

    def flush(self) -> None:
        """Tell the reader of what was put: once per socket read, not once per item."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
        if not self._full and (
            len(self._items) >= self._max_items or self._bytes >= self._max_bytes
        ):
            self._full = True
            self.on_full()

    def end(self, error: BaseException | None = None) -> None:
        """No more items. What is there is still handed out, then `error` is raised, if any."""
        if not self._ended:
            self._ended = True
            self._error = error
        if self._reader is not None and self._reader.get_loop().is_closed():
            self._reader = None  # nobody waits there any more
        self.flush()

    def discard(self) -> None:
        """Forget what is there."""
        self._items.clear()
        self._bytes = 0
        if self._full:
            self._full = False
            self.on_drained()

    def get_nowait(self) -> T | None:
        """The next item, or None when there is none at this moment."""
        if not self._items:
            return None
        item, size = self._items.popleft()
        self._bytes -= size
        if self._full and (
            len(self._items) * 2 <= self._max_items and self._bytes * 2 <= self._max_bytes
        ):
            self._full = False
            self.on_drained()
        return item

    async def get(self) -> T | None:
        """The next item; None at the end. Cancelling is safe: no item is lost."""
        while (item := self.get_nowait()) is None:
            if self._ended:
                error, self._error = self._error, None
                if error is not None:
                    raise error
                return None
            await self._wait()
        return item

    async def _wait(self) -> None:
        if self._reader is not None:
            raise RuntimeError("this stream is already being read by another task")
        self._reader = asyncio.get_running_loop().create_future()
        try:
            await self._reader
        finally:
            self._reader = None


class Latest(Generic[T]):
    """Lossy: the reader gets the newest item and is told nothing of those it missed but their number."""

    __slots__ = ("_ended", "_item", "_reader", "skipped")

    def __init__(self) -> None:
        self._item: T | None = None
        self._ended = False
        self._reader: asyncio.Future[None] | None = None
        self.skipped = 0

    def put(self, item: T) -> None:
        if self._item is not None:
            self.skipped += 1
        self._item = item
        self._wake()

    def end(self) -> None:
        """No more items; the last one is still handed out."""
        self._ended = True
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def get(self) -> T | None:
        """The newest item not yet seen; None at the end. Cancelling is safe."""
        while self._item is None:
            if self._ended:
                return None
            if self._reader is not None:
                raise RuntimeError("this is already being read by another task")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        item, self._item = self._item, None
        return item
