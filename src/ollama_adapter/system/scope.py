"""The owner of every background task: its `spawn` holds the only create_task of the package.

A task that fails is a bug of ours, or somebody's callback: its exception is kept and raised by
`aclose`, which cancels what still runs and waits for it.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from typing import Any

from ollama_adapter.errors import AdapterError


class TaskScope:
    """Tasks that end when the scope does. Bound to the loop and the process that first spawn in it."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._crashes: list[BaseException] = []
        self._closed = False
        self._process = 0

    def __repr__(self) -> str:
        return f"<TaskScope {len(self._tasks)} running>"

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
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
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._crashes:
            crash, self._crashes = self._crashes[0], []
            raise crash
