"""A timer that calls back at an instant: to a tenth of a millisecond where the system has such.

An event loop waits in whole milliseconds, which is much of a frame's seventeen. Linux has a timer that is a
file: the loop waits for it as for a socket, and it becomes ready at its instant, not a millisecond after.
Elsewhere, and where that is refused, the loop's own `call_at` has to do. Both are armed for one absolute
instant at a time: a sixtieth of a second is no whole number of nanoseconds, so a period would drift. A timer
that is not armed wakes nobody.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Protocol

CLOCK_MONOTONIC: Final = 1  # these are Linux's, the same on every processor
TFD_NONBLOCK: Final = os.O_NONBLOCK
TFD_CLOEXEC: Final = getattr(os, "O_CLOEXEC", 0)
TFD_TIMER_ABSTIME: Final = 1
SECOND_NS: Final = 1_000_000_000


class Timer(Protocol):
    """Calls what it was made with, once for every `at`, never before that instant."""

    def at(self, deadline_ns: int) -> None:
        """Arm it for `deadline_ns`, and for no other instant any more."""

    def close(self) -> None:
        """It calls no more. Idempotent."""


def open_timer(on_due: Callable[[], None], now_ns: Callable[[], int]) -> Timer:
    """The best timer that this system and this event loop have."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError, NotImplementedError):
            return FileTimer(on_due)
    return LoopTimer(on_due, now_ns)


class LoopTimer:
    """By the event loop: up to about a millisecond late, at any time right."""

    def __init__(self, on_due: Callable[[], None], now_ns: Callable[[], int]) -> None:
        self._on_due = on_due
        self._now_ns = now_ns
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None

    def at(self, deadline_ns: int) -> None:
        self.close()
        when = self._loop.time() + (deadline_ns - self._now_ns()) / SECOND_NS
        self._handle = self._loop.call_at(when, self._fire, deadline_ns)

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _fire(self, deadline_ns: int) -> None:
        if self._now_ns() < deadline_ns:  # a loop may fire a little early
            self.at(deadline_ns)
        else:
            self._handle = None
            self._on_due()


class FileTimer:
    """By Linux's timerfd. Raises OSError, AttributeError, NotImplementedError where there is none."""

    def __init__(self, on_due: Callable[[], None]) -> None:
        import ctypes  # 3 ms, for those alone who want frames; `os` has these calls from Python 3.13 on

        class Setting(ctypes.Structure):
            _fields_ = [(name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns")]

        libc = ctypes.CDLL(None, use_errno=True)
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._set = libc.timerfd_settime
        self._setting = Setting()
        self._pointer = ctypes.byref(self._setting)
        self._file = libc.timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC)
        if self._file < 0:
            raise OSError(ctypes.get_errno(), "this system has no timer that is a file")
        try:
            self._loop.add_reader(self._file, self._fire)
        except BaseException:
            self.close()
            raise

    def at(self, deadline_ns: int) -> None:
        # An instant of 0 would disarm it; what has passed is due at once all the same.
        self._setting.s, self._setting.ns = divmod(max(deadline_ns, 1), SECOND_NS)
        self._set(self._file, TFD_TIMER_ABSTIME, self._pointer, None)

    def close(self) -> None:
        if self._file >= 0:
            if not self._loop.is_closed():
                self._loop.remove_reader(self._file)
            os.close(self._file)
            self._file = -1

    def _fire(self) -> None:
        try:
            os.read(self._file, 8)  # how often it expired: otherwise it stays ready
        except BlockingIOError:
            return  # armed anew since the loop saw it
        self._on_due()
