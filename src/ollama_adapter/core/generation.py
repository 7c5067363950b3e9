"""One generation: records and their arrival times in, TokenEvents out; and how it ended.

The law of events: the tokens of a channel (text, thinking) concatenate to the text the daemon sent.
Log probability entries that concatenate to a record's text give an event each; otherwise the record
is one event with its whole text and the last entry's numbers. A record without text is counted and
not delivered. `index` counts what is delivered. The ids of a record go with its last event, and an empty
list of them with those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from ollama_adapter.core.account import Account
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.failures import remote_refused, stream_error
from ollama_adapter.core.interruptions import another_answer
from ollama_adapter.core.joint import Joint
from ollama_adapter.core.records import ChatRecord, GenerateRecord, LogprobEntry, Record
from ollama_adapter.events import Channel, Finish, Source, Statistics, TokenEvent, Way

_new: Final = object.__new__
_TEXT: Final = Channel.TEXT  # looked up once: a member of an enum takes Python 0.1 µs to find


class Generation(Account):
    """The state of one answer: what each read of its records becomes."""

    __slots__ = ("_epoch_offset_ns", "_events", "_joint", "source", "way")

    def __init__(
        self,
        statistics: Statistics,
        mapper: EUMapper,
        epoch_offset_ns: int,
        *,
        truncate: bool = False,
        wants_logprobs: bool = True,
    ) -> None:
        super().__init__(statistics, mapper, truncate=truncate, wants_logprobs=wants_logprobs)
        self.source = Source.LIVE
        self.way: Way | None = None
        self._joint: Joint | None = None
        self._epoch_offset_ns = epoch_offset_ns
        self._events: list[TokenEvent] = []  # of the read that is being taken

    def receive(
        self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int
    ) -> list[TokenEvent]:
        """The events of one read, whose records arrived at `now_ns`.

        Nearly all have a token's text and nothing beside it. Many of those at once have a way of their own.
        """
        texts = _plain_texts(records) if len(records) > 1 and self._joint is None else None
        if texts:
            self._emit_all(texts, records, now_ns)
        else:
            for record in records:
                self._receive(record, now_ns)
        events, self._events = self._events, []
        return events

    def _receive(self, record: GenerateRecord | ChatRecord, now_ns: int) -> None:
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
        chunk = text.strip()
        self._repeats = self._repeats + 1 if chunk == self._last_text else 1
        self._last_text = chunk
        if not entries:
            self._emit(text, channel, None, ids, now_ns)
        elif len(entries) == 1 or "".join([each.token for each in entries]) != text:
            self._emit(text, channel, entries[-1], ids, now_ns)
        else:
            *others, last = [each for each in entries if each.token]
            for entry in others:
                self._emit(entry.token, channel, entry, None if ids is None else (), now_ns)
            self._emit(last.token, channel, last, ids, now_ns)

    def _emit_all(self, texts: Sequence[str], records: Sequence[Record], now_ns: int) -> None:
        """What `_piece` and `_emit` do with plain records, one after the other."""
        statistics, emit = self.statistics, self._events.append
        session_id, model = statistics.session_id, statistics.served_by
        source, way, epoch_ms = self.source, self.way, (self._epoch_offset_ns + now_ns) // 1_000_000
        read = [_best(each.logprobs[0]) if each.logprobs else None for each in records]
        energies = self._mapper.tokens(now_ns, read)
        delta_ms = self._count_time(now_ns)
        index, total = statistics.tokens, self._energy_sum
        for text, record, logprobs, energy in zip(texts, records, read, energies, strict=True):
            chosen = candidates = None
            if record.logprobs:
                entry = record.logprobs[0]
                chosen, candidates = entry.logprob, entry.top_logprobs
            event = _new(TokenEvent)  # and field by field: its __init__ takes twice as long
            event.token = text
            event.timestamp_ms = epoch_ms
            event.delta_ms = delta_ms
            event.session_id = session_id
            event.model = model
            event.logprobs = logprobs
            event.energy = energy
            event.index = index
            event.source = source
            event.channel = _TEXT
            event.logprob = chosen
            event.candidates = candidates
            event.tool_calls = None
            event.arrival_ns = now_ns
            event.token_ids = record.token_ids
            event.way = way
            emit(event)
            delta_ms = 0
            index += 1
            total += energy
        self._energy_sum, statistics.tokens = total, index
        self._without_logprobs += read.count(None)
        self._count_repeats(texts)

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
            chosen, candidates = entry.logprob, entry.top_logprobs
            logprobs = _best(entry)
        delta_ms = self._count_time(now_ns)
        statistics.tokens = index + 1
        energy = self._mapper.token(now_ns, logprobs)
        self._energy_sum += energy
        self._events.append(
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
        if self._joint is not None:  # nothing was missing but this
            self._close_seam(self._joint, now_ns)
        self._count_last(record)


def _plain_texts(records: Sequence[GenerateRecord | ChatRecord]) -> list[str] | None:
    """The texts of records that have each one token of text, and nothing beside it; else None."""
    texts = []
    for record in records:
        if isinstance(record, GenerateRecord):
            text, more = record.response, bool(record.thinking)
        elif (message := record.message) is not None:
            text, more = message.content, bool(message.thinking or message.tool_calls)
        else:
            return None
        entries = record.logprobs
        if (
            more
            or not text
            or record.done
            or record.error is not None
            or record.remote_host
            or (entries and len(entries) > 1)
        ):
            return None
        texts.append(text)
    return texts


def _best(entry: LogprobEntry) -> list[float]:
    """The log probabilities of the most probable tokens; without a list, that of the one chosen."""
    candidates = entry.top_logprobs
    return [each.logprob for each in candidates] if candidates else [entry.logprob]
