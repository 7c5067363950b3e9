"""The steps of a plan, carried out: unload, load, and read back from the daemon what has become of it.

A load may take as long as it makes progress: while the runner works, its limit begins anew. Every step is
safe to cancel: what it leaves is doubtful until the daemon is asked the next time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from ollama_adapter.client import OllamaClient
from ollama_adapter.core.ledger import Entry
from ollama_adapter.core.listing import Listed, read_listing
from ollama_adapter.core.requests import Request, load_request
from ollama_adapter.errors import AdapterError, ModelLoadFailed, ModelNotFound
from ollama_adapter.events import Change, Footprint, ResidencyChange
from ollama_adapter.pool.parts import Parts
from ollama_adapter.pool.surroundings import Activity
from ollama_adapter.system.scope import is_orphan

log = logging.getLogger("ollama_adapter")

LOOK_S: Final = 1.0  # between two looks at a load
UNLOAD_S: Final = 30.0  # for the answer to an unload
GONE_NS: Final = 10_000_000_000  # how long a model may take to be gone
FIRST_PAUSE_NS: Final = 10_000_000
LAST_PAUSE_NS: Final = 250_000_000


class Mover:
    """Talks to the daemon, and writes what it said into the ledger."""

    def __init__(self, parts: Parts) -> None:
        self._client = parts.client
        self._ledger = parts.ledger
        self._scope = parts.scope
        self._clock = parts.clock
        self._herald = parts.herald
        self._load_s = parts.config.load_s

    def __repr__(self) -> str:
        return f"<Mover of {self._ledger!r}>"

    async def look(self) -> list[Listed]:
        """What the daemon has in memory."""
        return read_listing(await self._client.ps())

    async def refresh(self) -> None:
        """Ask the daemon, believe it, and tell what has changed."""
        self.believe(await self.look())

    def believe(self, listed: list[Listed]) -> None:
        for change in self._ledger.reconcile(listed, self._clock.now_ns()):
            self._herald.publish(change)

    async def evict(self, entry: Entry, change: Change, reason: str, *, embeds: bool) -> bool:
        """Whether the model has gone: it stays where somebody else uses it, or it cannot be named."""
        entry.doubtful = True
        try:
            await self._client.load(load_request(entry.name, 0, {}, embedding=embeds), UNLOAD_S)
            gone = await self._until_gone(entry)
        except ModelNotFound:  # deleted while it was in memory: it goes when its time is up
            gone = False
        if not gone:
            entry.stuck = True
            log.warning("%s could not be unloaded, and keeps its place in memory", entry.name)
            return False
        if self._ledger.find(entry.key) is entry:
            del self._ledger.entries[entry.key]
        now_ns = self._clock.now_ns()
        self._herald.publish(ResidencyChange(entry.name, change, Footprint(), reason, now_ns))
        return True

    async def _until_gone(self, entry: Entry) -> bool:
        deadline_ns = self._clock.now_ns() + GONE_NS
        pause_ns = FIRST_PAUSE_NS
        while True:
            listed = await self.look()
            if not any(self._is_of(each, entry) for each in listed):
                return True
            if self._clock.now_ns() >= deadline_ns:
                self.believe(listed)
                return False
            await self._clock.sleep_until_ns(self._clock.now_ns() + pause_ns)
            pause_ns = min(2 * pause_ns, LAST_PAUSE_NS)

    def _is_of(self, listed: Listed, entry: Entry) -> bool:
        """The entry's listing: by its name, or by another one of the same model that nobody has loaded."""
        if listed.key == entry.key:
            return True
        alias = bool(entry.digest) and listed.digest == entry.digest
        return alias and listed.key not in self._ledger.entries

    async def load(
        self, request: Request, activity: Activity, weights: str, tell: Callable[[], None]
    ) -> None:
        """Raises ModelLoadFailed and what the daemon says. `tell` is called while it goes on."""
        task = self._scope.spawn(_captured(self._client, request), "model load request")
        try:
            await self._watch(task, request.model, activity, weights, tell)
        finally:
            if not task.done() and not is_orphan(task):
                task.cancel()
                await asyncio.wait([task])
        if task.cancelled():
            raise AdapterError("this adapter has been closed", hint="make a new one")
        if isinstance(error := task.result(), AdapterError):
            raise error

    async def _watch(
        self,
        task: asyncio.Task[AdapterError | None],
        model: str,
        activity: Activity,
        weights: str,
        tell: Callable[[], None],
    ) -> None:
        quiet_s, seen = 0.0, None
        while True:
            step_s = min(LOOK_S, self._load_s / 4)
            done, _ = await asyncio.wait([task], timeout=step_s)
            if done:
                return
            tell()
            now = await activity(weights)
            moved = now is not None and seen is not None and now != seen
            seen, quiet_s = now, 0.0 if moved else quiet_s + step_s
            if quiet_s >= self._load_s:
                raise ModelLoadFailed(
                    f"{model} was not loaded within {self._load_s:g} s",
                    hint="pool.load_s is the limit for a load that makes no progress, and can be "
                    "raised; a smaller model loads sooner",
                )


async def _captured(client: OllamaClient, request: Request) -> AdapterError | None:
    """Its error is for whoever waits, not for the scope."""
    try:
        await client.load(request, None)
    except AdapterError as error:
        return error
    return None
