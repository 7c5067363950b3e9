"""The owner of every background task: its `spawn` holds the only create_task of the package.

A task that fails is a bug of ours, or somebody's callback: its exception is kept and raised by
`aclose`, which cancels what still runs and waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any, TypeVar

from ollama_adapter.errors import AdapterError

T = TypeVar("T")


class TaskScope:
    """Tasks that end when the scope does. Bound to the loop and the process that first spawn in it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._crashes: list[BaseException] = []
        self._closed = False
        self._process = 0

    def __repr__(self) -> str:
        return f"<TaskScope {len(self._tasks)} running>"

    def spawn(self, work: Coroutine[Any, Any, T], name: str) -> asyncio.Task[T]:
        """Run `work` in the background until it ends or the scope closes. Raises AdapterError."""
        try:
            self._check()
        except AdapterError:
            work.close()
            raise
        task = asyncio.get_running_loop().create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    async def run(self, work: Coroutine[Any, Any, T], name: str) -> T:
        """The result of `work`, which ends when the scope does: with AdapterError for who waits.

        An error of its own goes to the caller, not to the scope. Cancelling cancels the work.
        """

        async def capture() -> T | AdapterError:
            try:
                return await work
            except AdapterError as error:
                return error

        result = await _unless_closed(self.spawn(capture(), name))
        if isinstance(result, AdapterError):
            raise result
        return result

    def _check(self) -> None:
        if self._closed:
            raise AdapterError("this adapter is closed", hint="make a new one")
        self._process = self._process or os.getpid()
        if self._process != os.getpid():
            raise AdapterError(
                "this process was forked from one that uses this adapter, and cannot use it, too",
                hint="make an adapter of its own in every worker, after the fork",
            )

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._crashes.append(error)

    async def aclose(self) -> None:
        """Cancel what runs, wait for it, and raise the first crash. Idempotent."""
        self._closed = True
        tasks = [each for each in self._tasks if not is_orphan(each)]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._crashes:
            crash, self._crashes = self._crashes[0], []
            raise crash


def is_orphan(task: asyncio.Future[Any]) -> bool:
    """Its event loop was closed: it does not run any more, and cannot be cancelled or waited for."""
    return task.get_loop().is_closed()


async def shared(task: asyncio.Task[T]) -> T:
    """The result of a task that others wait for, too: cancelling leaves it to them."""
    return await _unless_closed(asyncio.shield(task))


async def _unless_closed(waiting: asyncio.Future[T]) -> T:
    """A scope that closes cancels its tasks; who waited for one has not been cancelled by that."""
    try:
        return await waiting
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise AdapterError("this adapter has been closed", hint="make a new one") from None
