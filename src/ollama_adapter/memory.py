"""Whole answers in the memory of this process, for the time when no daemon can be had.

What is kept, for how long and under which key, core.cache decides; here are the secret of the process, the
clock, and the way back from what is kept to events. An event from memory has no energy: nothing was computed.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Final

from ollama_adapter.config import StreamConfig
from ollama_adapter.core.cache import SECRET_BYTES, AnswerCache, Cached, pack
from ollama_adapter.core.requests import Request
from ollama_adapter.events import Source, Statistics, TokenEvent
from ollama_adapter.system.clock import Clock

KEPT_TOKENS: Final = 1024
"""The longest answer that is kept: its tokens stay in memory until it has ended."""
DRAFTED_TOKENS: Final = 65_536
"""How much of answers that have not ended is held, of all sessions together: some 15 MB, with five
candidates for each token."""


class Draft:
    """The answer of one session, while it comes; `parts` is empty where it is not to be kept."""

    __slots__ = ("_kept", "_memory", "_tokens", "parts")

    def __init__(self, memory: Memory, *, kept: bool) -> None:
        self._memory = memory
        self._kept = kept
        self._tokens = 0
        self.parts: list[bytes] = []

    def __repr__(self) -> str:
        return f"<Draft of {self._tokens} tokens>"

    def add(self, events: Sequence[TokenEvent]) -> None:
        """Keep what one read brought, unless it is too much."""
        if not self._kept:
            return
        self._tokens += len(events)
        self._memory.drafted += len(events)
        much = self._tokens > KEPT_TOKENS or self._memory.drafted > DRAFTED_TOKENS
        part = None if much else pack(events)
        if part is None:
            self.drop()
        else:
            self.parts.append(part)

    def drop(self) -> None:
        """Hold nothing of it any more. Idempotent."""
        self._kept = False
        self._memory.drafted -= self._tokens
        self._tokens = 0
        self.parts = []


class Memory:
    """One adapter's. `model_digest` is "" for a model of which none is known: then nothing is kept."""

    def __init__(self, limits: StreamConfig, clock: Clock) -> None:
        self._clock = clock
        self._keeps = limits.cache_bytes > 0
        self.drafted = 0  # tokens of answers that have not ended
        self._cache = AnswerCache(
            limits.cache_bytes, limits.cache_s, secrets.token_bytes(SECRET_BYTES)
        )

    def __repr__(self) -> str:
        return f"<Memory of {len(self._cache)} answers>"

    def draft(self, *, private: bool) -> Draft:
        """For an answer that is about to come."""
        return Draft(self, kept=self._keeps and not private)

    def keep(
        self,
        model_digest: str,
        request: Request,
        parts: Sequence[bytes],
        statistics: Statistics,
    ) -> None:
        """Remember an answer that ended well."""
        if model_digest:
            key = self._cache.key(model_digest, request.path, request.body)
            self._cache.put(key, parts, statistics, self._clock.now_ns())

    def find(self, model_digest: str, request: Request) -> Cached | None:
        """The answer to exactly this request."""
        if not model_digest:
            return None
        key = self._cache.key(model_digest, request.path, request.body)
        return self._cache.get(key, self._clock.now_ns())


def retell(found: Cached, statistics: Statistics, clock: Clock) -> Iterator[TokenEvent]:
    """The events of an answer from memory, and its account."""
    now_ns = clock.now_ns()
    now_ms = (clock.epoch_offset_ns + now_ns) // 1_000_000
    for index, each in enumerate(found.tokens):
        candidates = each.candidates
        yield TokenEvent(
            each.token,
            now_ms,
            0,
            statistics.session_id,
            statistics.model,
            [best.logprob for best in candidates] if candidates else None,
            None,
            index,
            Source.CACHED,
            each.channel,
            each.logprob,
            candidates,
            each.tool_calls,
            now_ns,
            each.token_ids,
        )
    statistics.tokens = len(found.tokens)
    statistics.prompt_eval_count = found.prompt_eval_count
    statistics.eval_count = found.eval_count
    statistics.cached_age_s = found.age_ns / 1e9
    statistics.finish = found.finish
