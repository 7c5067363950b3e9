"""The account of one answer: what its statistics are made of, and how it ended.

`Generation` builds on it: it turns records into events and counts them here. `first_ns` and `last_ns` are
when the first and the latest token arrived (0: none yet); `error` is what ended the answer, if anything did.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.failures import context_overflow
from ollama_adapter.core.records import Record
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import Finish, Statistics

REPEAT_LIMIT: Final = 30  # more equal chunks in a row, and the daemon ends the stream in silence
TRUNCATION_SLACK: Final = 4  # tokens by which two counts of an uncut prompt may differ

_DAEMON_WORDS: Final = {each.value: each for each in (Finish.STOP, Finish.LENGTH, Finish.LOAD)}
_DAEMON_WORDS[Finish.UNLOAD.value] = Finish.UNLOAD


class Account:
    """What is counted of one answer, until `close` completes its statistics."""

    __slots__ = (
        "_energy_sum",
        "_last_text",
        "_mapper",
        "_repeats",
        "_truncate",
        "_wants_logprobs",
        "_without_logprobs",
        "done",
        "error",
        "first_ns",
        "last_ns",
        "statistics",
    )

    def __init__(
        self, statistics: Statistics, mapper: EUMapper, *, truncate: bool, wants_logprobs: bool
    ) -> None:
        self.statistics = statistics
        self.done = False
        self.error: AdapterError | None = None
        self.first_ns = 0
        self.last_ns = 0
        self._mapper = mapper
        self._truncate = truncate
        self._wants_logprobs = wants_logprobs
        self._without_logprobs = 0
        self._energy_sum = 0.0
        self._last_text = ""
        self._repeats = 0

    def _count_repeats(self, texts: Sequence[str]) -> None:
        """How many of the latest chunks are equal: from the end, for most differ from the one before."""
        last, run = texts[-1].strip(), 0
        for text in reversed(texts):
            if text.strip() != last:
                break
            run += 1
        else:
            run += self._repeats if last == self._last_text else 0
        self._repeats, self._last_text = run, last

    def _count_time(self, now_ns: int) -> int:
        """A token arrived: how long after the one before, in whole milliseconds."""
        if not self.statistics.tokens:
            self.first_ns = self.last_ns = now_ns
            return 0
        before_ns, self.last_ns = self.last_ns, now_ns
        return (now_ns - before_ns + 500_000) // 1_000_000

    def _count_last(self, record: Record) -> None:
        """The daemon's own figures, and its word for the end."""
        statistics = self.statistics
        self.done = True
        statistics.finish = _DAEMON_WORDS.get(record.done_reason, Finish.STOP)
        statistics.load_duration_ns = record.load_duration
        statistics.total_duration_ns = record.total_duration
        statistics.prompt_eval_count = record.prompt_eval_count
        statistics.prompt_eval_duration_ns = record.prompt_eval_duration
        statistics.eval_count = record.eval_count
        statistics.eval_duration_ns = record.eval_duration

    def check_truncation(self, context_tokens: int) -> None:
        """A daemon too old to know `truncate` cuts a prompt without a word: compare its two counts.

        The context it echoes is that of the whole prompt and the answer. A count of 0 says nothing: old
        daemons leave it out for a prompt that they have cached.
        """
        counted = self.statistics.prompt_eval_count
        sent = context_tokens - self.statistics.eval_count
        if context_tokens and counted and not self._truncate and sent > counted + TRUNCATION_SLACK:
            self.error = context_overflow(self.statistics.served_by, sent, counted)

    def ending(self, *, complete: bool) -> Finish | None:
        """An attempt is over. How the daemon ended it; None when it did not say that it had ended."""
        statistics = self.statistics
        if statistics.finish is None and complete and self._repeats > REPEAT_LIMIT:
            statistics.finish = Finish.REPEAT
        return statistics.finish

    def close(self, now_ns: int) -> None:
        """Nothing more comes: complete the account."""
        statistics = self.statistics
        self._mapper.end(now_ns)
        if statistics.tokens:
            if statistics.cached_age_s is None:  # from memory: nothing was computed
                statistics.mean_energy = self._energy_sum / statistics.tokens
            without = self._without_logprobs == statistics.tokens
            if self._wants_logprobs and without and "logprobs" not in statistics.degraded:
                statistics.degraded = ("logprobs", *statistics.degraded)
        if statistics.tokens > 1 and self.last_ns > self.first_ns:
            statistics.tps = (statistics.tokens - 1) * 1e9 / (self.last_ns - self.first_ns)
