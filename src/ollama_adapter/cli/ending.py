"""How a command runs and how it ends: one event loop, signals, errors in words, exit codes.

0 done · 1 failed · 2 wrongly called · 128 + n ended by signal n (130: Ctrl-C) · 141 the reader of our
output went away. A signal cancels the command, which stops what it started; a second one makes it quick.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from contextvars import ContextVar
from typing import Final

from click.exceptions import Exit

from ollama_adapter.cli.output import notices
from ollama_adapter.cli.wording import tell, tell_json
from ollama_adapter.errors import AdapterError, InvalidRequest

FAILED: Final = 1
USAGE: Final = 2
CLOSED_PIPE: Final = 128 + signal.SIGPIPE
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def execute(prepare: Callable[[], Awaitable[None]], *, as_json: bool = False) -> None:
    """Run a command to its end, whatever that is. Raises Exit.

    `prepare` reads arguments, settings and stdin, before there is a loop, and gives the work itself.
    """
    logging.getLogger("ollama_adapter").addHandler(notices)
    try:
        code = asyncio.run(_until_signal(prepare()))
        # The loop is gone, and with it what it did about signals: we are ending already.
        signal.signal(signal.SIGINT, signal.SIG_IGN if code else signal.SIG_DFL)
        sys.stdout.flush()
    except BrokenPipeError:
        code = CLOSED_PIPE
    except KeyboardInterrupt:  # before the loop or after it
        code = 128 + signal.SIGINT
    except (AdapterError, OSError) as error:
        code = USAGE if isinstance(error, InvalidRequest) else FAILED
        _report(error, as_json)
    raise Exit(code)


class Interrupted(Exception):
    """Ctrl-C, where a part of the command is to end and not the whole."""


class _Signals:
    """What a signal does to the task of a command. One per loop."""

    def __init__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self.received: list[int] = []
        self._parts: list[bool] = []  # of the parts that are running: whether Ctrl-C ended them

    def install(self) -> None:
        for number in SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                asyncio.get_running_loop().add_signal_handler(number, self._receive, number)

    def _receive(self, number: int) -> None:
        if number == signal.SIGINT and self._parts and not self._parts[-1]:
            self._parts[-1] = True
        else:
            self.received.append(number)
        self._task.cancel()

    @contextmanager
    def part(self) -> Iterator[None]:
        self._parts.append(False)
        try:
            yield
        except asyncio.CancelledError:
            if not self._parts[-1] or self.received:
                raise
            self._task.uncancel()
            raise Interrupted from None
        finally:
            self._parts.pop()


_signals: Final[ContextVar[_Signals]] = ContextVar("signals")


def interruption() -> AbstractContextManager[None]:
    """Within the block, Ctrl-C ends the block with Interrupted; a second one ends the command."""
    return _signals.get().part()


async def _until_signal(work: Awaitable[None]) -> int:
    signals = _Signals()
    signals.install()
    _signals.set(signals)
    try:
        await work
    except (asyncio.CancelledError, OSError):  # the terminal may be gone as well
        if not signals.received:
            raise
    finally:  # a signal changes nothing any more, and must not be written to a loop that closes
        signal.set_wakeup_fd(-1)
    return 128 + signals.received[0] if signals.received else 0


def _report(error: AdapterError | OSError, as_json: bool) -> None:
    """In words on stderr, or as the last line of the JSON on stdout."""
    with suppress(OSError):  # what nobody takes is dropped at the very end (app.main)
        tell_json(error) if as_json else tell(error)
