"""Two ways from one writer to one reader: Channel loses nothing and pushes back, Latest skips.

A Channel never blocks its writer: it calls `on_full` when its fill passes the limits and `on_drained`
when the reader has emptied half of it, and the writer stops reading its socket in between. A reader that
waits for a token goes on in the very callback that read it (`deliver`): another turn of the loop would be a
tenth of all that is done for a token.
"""

from __future__ import annotations

import asyncio
from asyncio import current_task
from collections.abc import Callable, Iterator, Sequence
from contextvars import Context
from operator import length_hint
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

# Looked up once: for super() it takes longer, and others may put a Future of their own in asyncio's place.
_add_done_callback: Final = asyncio.Future.add_done_callback


def _nothing() -> None:
    """Nobody has to be told."""


def _wake(reader: asyncio.Future[Any] | None) -> None:
    """Tell a reader, if one waits, that there is something. In a loop that was closed nobody does."""
    if reader is not None and not reader.done():
        try:
            reader.set_result(None)
        except RuntimeError:
            if not reader.get_loop().is_closed():
                raise


class Waiter(asyncio.Future[T | None]):
    """What one reader waits for. `resume` lets it go on now, and not in the next turn of the loop."""

    __slots__ = ("_context", "_step")

    def add_done_callback(
        self, fn: Callable[[Any], object], *, context: Context | None = None
    ) -> None:
        self._step, self._context = fn, context
        _add_done_callback(self, fn, context=context)

    def resume(self, item: T) -> None:
        """Run the reader with `item`, until it waits again. Only where no task is running."""
        step, context = self._step, self._context
        self.remove_done_callback(step)
        self.set_result(item)
        if context is None:
            step(self)
        else:
            context.run(step, self)


class Channel(Generic[T]):
    """Lossless. The items are handed out in order, then the end: None, or an error raised once.

    What one read of a socket brought stays together, and counts for the limits until all of it is out.
    """

    __slots__ = (
        "_begun",
        "_bytes",
        "_ended",
        "_error",
        "_full",
        "_is_begun",
        "_items",
        "_max_bytes",
        "_max_items",
        "_reader",
        "_reads",
        "loop",
        "on_drained",
        "on_full",
        "__weakref__",
    )

    def __init__(self, max_items: int, max_bytes: int) -> None:
        self._reads: list[tuple[Sequence[T], int]] = []  # few: a deque would take 700 bytes at once
        self._begun: Iterator[T] = iter(())  # the first of them, while it is being handed out
        self._is_begun = False
        self._items = 0
        self._bytes = 0
        self._max_items = max_items
        self._max_bytes = max_bytes
        self._full = False
        self._ended = False
        self._error: BaseException | None = None
        self._reader: Waiter[T] | None = None
        self.loop: asyncio.AbstractEventLoop | None = None  # where there can be no other
        self.on_full: Callable[[], None] = _nothing
        self.on_drained: Callable[[], None] = _nothing

    def __len__(self) -> int:
        if not self._items:  # nearly always, and asked of every stream for every frame
            return 0
        begun = len(self._reads[0][0]) if self._is_begun else 0
        return self._items - begun + length_hint(self._begun)

    @property
    def full(self) -> bool:
        """The writer has been told to wait."""
        return self._full

    def put(self, item: T, size: int) -> None:
        """Add an item of `size` bytes; never waits. The reader wakes at `flush`."""
        self.put_all((item,), size)

    def put_all(self, items: Sequence[T], size: int) -> None:
        """Add the items of a read, at least one, of `size` bytes in all. They are not copied."""
        self._reads.append((items, size))
        self._items += len(items)
        self._bytes += size

    def deliver(self, items: Sequence[T], size: Callable[[Sequence[T]], int]) -> None:
        """`put_all` and `flush`, as the last thing a callback does: the reader may run before this returns.

        A single item for which it waits is given to it directly, and takes up no room.
        """
        reader = self._reader
        if len(items) > 1 or self._reads or reader is None or reader.done() or current_task():
            self.put_all(items, size(items))
            self.flush()
        else:
            reader.resume(items[0])

    def flush(self) -> None:
        """Tell the reader of what was put: once per socket read, not once per item."""
        _wake(self._reader)
        if (self._items >= self._max_items or self._bytes >= self._max_bytes) and not self._full:
            self._full = True
            self.on_full()

    def end(self, error: BaseException | None = None) -> None:
        """No more items. What is there is still handed out, then `error` is raised, if any."""
        if not self._ended:
            self._ended = True
            self._error = error
        self.flush()

    def discard(self) -> None:
        """Forget what is there."""
        self._begun, self._is_begun = iter(()), False
        self._reads.clear()
        self._items = self._bytes = 0
        if self._full:
            self._relax()

    def get_nowait(self) -> T | None:
        """The next item, or None when there is none at this moment."""
        for item in self._begun:
            return item
        return self._begin_next() if self._reads else None

    async def get(self) -> T | None:
        """The next item; None at the end. Cancelling is safe: no item is lost."""
        item = self.get_nowait()
        return await self.wait() if item is None else item

    async def wait(self) -> T | None:
        """The same, when `get_nowait` has just given nothing."""
        while not self._ended:
            if self._reader is not None:
                raise RuntimeError("this stream is already being read by another task")
            self._reader = Waiter(loop=self.loop or asyncio.get_running_loop())
            try:
                item = await self._reader
            finally:
                self._reader = None
            if item is None:
                item = self.get_nowait()
            if item is not None:
                return item
        error, self._error = self._error, None
        if error is not None:
            raise error
        return None

    def _begin_next(self) -> T | None:
        """A read has been handed out, if one was begun: the first item of the next."""
        if self._is_begun:
            items, size = self._reads.pop(0)
            self._items -= len(items)
            self._bytes -= size
            if self._full:
                self._relax()
            if not self._reads:
                self._is_begun = False
                return None
        self._is_begun = True
        self._begun = iter(self._reads[0][0])
        return next(self._begun)

    def _relax(self) -> None:
        """Tell a writer that waits, once half of what it may put has gone."""
        if self._items * 2 <= self._max_items and self._bytes * 2 <= self._max_bytes:
            self._full = False
            self.on_drained()


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
        _wake(self._reader)

    def end(self) -> None:
        """No more items; the last one is still handed out."""
        self._ended = True
        _wake(self._reader)

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
