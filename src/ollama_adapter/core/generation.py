"""One generation: records and their arrival times in, TokenEvents out; and how it ended.

The law of events: the tokens of a channel (text, thinking) concatenate to the text the daemon sent.
Log probability entries that concatenate to a record's text give an event each; otherwise the record
is one event with its whole text and the last entry's numbers. A record without text is counted and
not delivered. `index` counts what is delivered. The ids of a record go with its last event, and an empty
list of them with those before it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.failures import context_overflow, remote_refused, stream_error
from ollama_adapter.core.interruptions import another_answer
from ollama_adapter.core.joint import Joint
from ollama_adapter.core.records import ChatRecord, GenerateRecord, LogprobEntry, Record
from ollama_adapter.errors import AdapterError
from ollama_adapter.events import Channel, Finish, Source, Statistics, TokenEvent, Way

REPEAT_LIMIT: Final = 30  # more equal chunks in a row, and the daemon ends the stream in silence
TRUNCATION_SLACK: Final = 4  # tokens by which two counts of an uncut prompt may differ

_TEXT: Final = Channel.TEXT  # looked up once: a member of an enum takes Python 0.1 µs to find
_DAEMON_WORDS: Final = {each.value: each for each in (Finish.STOP, Finish.LENGTH, Finish.LOAD)}
_DAEMON_WORDS[Finish.UNLOAD.value] = Finish.UNLOAD


class Generation:
    """The state of one answer. `deliver` is given each event, at once, in order."""

    __slots__ = (
        "_deliver",
        "_energy_sum",
        "_epoch_offset_ns",
        "_joint",
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
        "source",
        "statistics",
        "way",
    )

    def __init__(
        self,
        statistics: Statistics,
        mapper: EUMapper,
        epoch_offset_ns: int,
        deliver: Callable[[TokenEvent], None],
        *,
        truncate: bool = False,
        wants_logprobs: bool = True,
    ) -> None:
        self.statistics = statistics
        self.source = Source.LIVE
        self.way: Way | None = None
        self._joint: Joint | None = None
        self.done = False
        self.error: AdapterError | None = None
        self._mapper = mapper
        self._epoch_offset_ns = epoch_offset_ns
        self._deliver = deliver
        self._truncate = truncate
        self._wants_logprobs = wants_logprobs
        self._without_logprobs = 0
        self._energy_sum = 0.0
        self.first_ns = 0  # when the first token arrived; 0 before
        self.last_ns = 0  # when the latest one did
        self._last_text = ""
        self._repeats = 0

    def receive(self, record: GenerateRecord | ChatRecord, now_ns: int) -> None:
        """Take one record that arrived at `now_ns`."""
        tool_calls: list[dict[str, Any]] | None = None
        if isinstance(record, GenerateRecord):
            text, thinking = record.response, record.thinking
        elif (message := record.message) is not None:
            text, thinking, tool_calls = message.content, message.thinking, message.tool_calls
        else:
            text = thinking = ""
        entries, ids = record.logprobs, record.token_ids
        before = None if ids is None else ()
        if thinking:
            # Where both come in one record, the entries belong to what comes last.
            alone = not (text or tool_calls)
            self._piece(
                thinking,
                Channel.THINKING,
                None if text else entries,
                ids if alone else before,
                now_ns,
            )
        if text:
            self._piece(text, _TEXT, entries, before if tool_calls else ids, now_ns)
        if tool_calls:
            self._emit("", Channel.TOOL_CALLS, None, ids, now_ns, tool_calls)
        elif not (text or thinking or record.done):
            self._receive_empty(record, now_ns)
        if record.done or record.error is not None or record.remote_host:
            self._receive_last(record, now_ns)

    def _receive_empty(self, record: Record, now_ns: int) -> None:
        """No text: the rendered prompt, where only that was asked for, or nothing to deliver."""
        if record.debug_info is None:
            self.statistics.empty_records += record.error is None
            return
        self._emit(record.debug_info.rendered_template, Channel.TEXT, None, None, now_ns)
        self.done = True
        self.statistics.finish = Finish.STOP

    def _piece(
        self,
        text: str,
        channel: Channel,
        entries: list[LogprobEntry] | None,
        ids: tuple[int, ...] | None,
        now_ns: int,
    ) -> None:
        stripped = text.strip()
        self._repeats = self._repeats + 1 if stripped == self._last_text else 1
        self._last_text = stripped
        if not entries:
            self._emit(text, channel, None, ids, now_ns)
        elif len(entries) == 1 or "".join([each.token for each in entries]) != text:
            self._emit(text, channel, entries[-1], ids, now_ns)
        else:
            *others, last = [each for each in entries if each.token]
            for entry in others:
                self._emit(entry.token, channel, entry, None if ids is None else (), now_ns)
            self._emit(last.token, channel, last, ids, now_ns)

    def _emit(
        self,
        token: str,
        channel: Channel,
        entry: LogprobEntry | None,
        ids: tuple[int, ...] | None,
        now_ns: int,
        tool_calls: list[dict[str, Any]] | None = None,
    ) -> None:
        statistics = self.statistics
        index = statistics.tokens
        if self._joint is not None:
            admitted = self._join(self._joint, token, channel, entry, ids, tool_calls, now_ns)
            if admitted is None:
                return
            ids = ids if admitted == token else None  # they are those of the whole piece
            token = admitted
        if entry is None:
            logprobs = chosen = candidates = None
            self._without_logprobs += 1
        else:
            chosen = entry.logprob
            candidates = entry.top_logprobs
            logprobs = [each.logprob for each in candidates] if candidates else [chosen]
        if index:
            delta_ms = (now_ns - self.last_ns + 500_000) // 1_000_000
        else:
            delta_ms = 0
            self.first_ns = now_ns
        self.last_ns = now_ns
        statistics.tokens = index + 1
        energy = self._mapper.token(now_ns, logprobs)
        self._energy_sum += energy
        self._deliver(
            TokenEvent(
                token,
                (self._epoch_offset_ns + now_ns) // 1_000_000,
                delta_ms,
                statistics.session_id,
                statistics.served_by,
                logprobs,
                energy,
                index,
                self.source,
                channel,
                chosen,
                candidates,
                tool_calls,
                now_ns,
                ids,
                self.way,
            )
        )

    def go_on(self, joint: Joint) -> None:
        """Another answer joins this one: what comes from now on is its."""
        self._joint = joint
        self.source = joint.source
        self.way = None if joint.way is Way.ANEW else joint.way
        self.error = None
        self._last_text, self._repeats = "", 0

    def end_at_limit(self, now_ns: int) -> None:
        """As many tokens came as were asked for; only the last record was lost."""
        self.done = True
        self.statistics.finish = Finish.LENGTH
        if self._joint is not None:
            self._close_seam(self._joint, now_ns)

    def _join(
        self,
        joint: Joint,
        token: str,
        channel: Channel,
        entry: LogprobEntry | None,
        ids: tuple[int, ...] | None,
        tool_calls: list[dict[str, Any]] | None,
        now_ns: int,
    ) -> str | None:
        """What is new of a piece; with the first that is, the seam is closed."""
        if joint.way is Way.TOKENS and ids is None:  # a daemon that knows none began anew
            self.error = another_answer(self.statistics)
            return None
        candidates = entry.top_logprobs if entry is not None else None
        admitted = joint.admit(token, channel, candidates, tool_calls)
        if joint.diverged:
            self.error = another_answer(self.statistics)
        elif admitted is not None:
            self._close_seam(joint, now_ns)
        return admitted

    def _close_seam(self, joint: Joint, now_ns: int) -> None:
        self._joint = None
        gap_ns = now_ns - self.last_ns if self.last_ns else 0
        self.statistics.seams += (joint.seam(self.statistics.tokens, gap_ns),)

    def _receive_last(self, record: Record, now_ns: int) -> None:
        model = self.statistics.served_by
        if self.error is not None:  # another answer, whose end is not ours
            return
        if record.error is not None:
            session_id, tokens = self.statistics.session_id, self.statistics.tokens
            self.error = stream_error(record.error, model, session_id, tokens)
        elif record.remote_host:
            self.error = remote_refused(model, 200)
        elif self._joint is not None and self._joint.open:
            self.error = another_answer(self.statistics)
        else:
            self._conclude(record, now_ns)

    def _conclude(self, record: Record, now_ns: int) -> None:
        statistics = self.statistics
        if self._joint is not None:  # nothing was missing but this
            self._close_seam(self._joint, now_ns)
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
