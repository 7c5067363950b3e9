"""One generation: records and their arrival times in, TokenEvents out; and how it ended.

The law of events: the tokens of a channel (text, thinking) concatenate to the text the daemon sent.
Log probability entries that concatenate to a record's text give an event each; otherwise the record
is one event with its whole text and the last entry's numbers. A record without text is counted and
not delivered. `index` counts what is delivered. The ids of a record go with its last event, and an empty
list of them with those before it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from ollama_adapter.core.account import Account
from ollama_adapter.core.energy import EUMapper
from ollama_adapter.core.failures import remote_refused, stream_error
from ollama_adapter.core.interruptions import another_answer
from ollama_adapter.core.joint import Joint
from ollama_adapter.core.records import ChatRecord, GenerateRecord, LogprobEntry, Record
from ollama_adapter.events import Channel, Finish, Source, Statistics, TokenEvent, Way

_TEXT: Final = Channel.TEXT  # looked up once: a member of an enum takes Python 0.1 µs to find
_Piece = tuple[str, LogprobEntry | None, tuple[int, ...] | None]
"""A token with nothing beside it: its text, its log probabilities, its ids."""


class Generation(Account):
    """The state of one answer. `deliver` is given each event, at once, in order."""

    __slots__ = ("_deliver", "_epoch_offset_ns", "_joint", "source", "way")

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
        super().__init__(statistics, mapper, truncate=truncate, wants_logprobs=wants_logprobs)
        self.source = Source.LIVE
        self.way: Way | None = None
        self._joint: Joint | None = None
        self._epoch_offset_ns = epoch_offset_ns
        self._deliver = deliver

    def receive_all(self, records: Sequence[GenerateRecord | ChatRecord], now_ns: int) -> None:
        """Take the records of one read: what `receive` makes of one after the other, sooner.

        Nearly all have a token's text and nothing beside it. Those in a row are made into events together.
        """
        if len(records) == 1:  # of its own, a token costs less without what saves time for many
            return self.receive(records[0], now_ns)
        plain: list[_Piece] = []
        for record in records:
            if isinstance(record, GenerateRecord):
                text, more = record.response, bool(record.thinking)
            elif (message := record.message) is not None:
                text, more = message.content, bool(message.thinking or message.tool_calls)
            else:
                text, more = "", False
            entries = record.logprobs
            if (
                more
                or not text
                or record.done
                or record.error is not None
                or record.remote_host
                or self._joint is not None
                or (entries and len(entries) > 1)
            ):
                self._emit_all(plain, now_ns)
                plain = []
                self.receive(record, now_ns)
            else:
                plain.append((text, entries[0] if entries else None, record.token_ids))
        self._emit_all(plain, now_ns)

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
        self._count_repeats((text,))
        if not entries:
            self._emit(text, channel, None, ids, now_ns)
        elif len(entries) == 1 or "".join([each.token for each in entries]) != text:
            self._emit(text, channel, entries[-1], ids, now_ns)
        else:
            *others, last = [each for each in entries if each.token]
            for entry in others:
                self._emit(entry.token, channel, entry, None if ids is None else (), now_ns)
            self._emit(last.token, channel, last, ids, now_ns)

    def _emit_all(self, pieces: Sequence[_Piece], now_ns: int) -> None:
        """What `_piece` and `_emit` make of one after the other."""
        if not pieces:
            return
        statistics, deliver = self.statistics, self._deliver
        session_id, model = statistics.session_id, statistics.served_by
        source, way, epoch_ms = self.source, self.way, (self._epoch_offset_ns + now_ns) // 1_000_000
        read = [None if entry is None else _best(entry) for _, entry, _ in pieces]
        energies = self._mapper.tokens(now_ns, read)
        delta_ms = self._count_time(now_ns)
        index, total = statistics.tokens, self._energy_sum
        for (text, entry, ids), logprobs, energy in zip(pieces, read, energies, strict=True):
            if entry is None:
                chosen = candidates = None
            else:
                chosen, candidates = entry.logprob, entry.top_logprobs
            total += energy
            deliver(
                TokenEvent(
                    text,
                    epoch_ms,
                    delta_ms,
                    session_id,
                    model,
                    logprobs,
                    energy,
                    index,
                    source,
                    _TEXT,
                    chosen,
                    candidates,
                    None,
                    now_ns,
                    ids,
                    way,
                )
            )
            delta_ms = 0
            index += 1
        self._energy_sum, statistics.tokens = total, index
        self._without_logprobs += read.count(None)
        self._count_repeats([text for text, _, _ in pieces])

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
        if self._joint is not None:  # nothing was missing but this
            self._close_seam(self._joint, now_ns)
        self._count_last(record)


def _best(entry: LogprobEntry) -> list[float]:
    """The log probabilities of the most probable tokens; without a list, that of the one chosen."""
    candidates = entry.top_logprobs
    return [each.logprob for each in candidates] if candidates else [entry.logprob]
