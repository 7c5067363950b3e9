"""The law of events: what is delivered is what the daemon sent, in order, with its times and numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.account import REPEAT_LIMIT, TRUNCATION_SLACK
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.generation import Generation
from ollama_adapter.core.records import (
    ChatRecord,
    DebugInfo,
    GenerateRecord,
    LogprobEntry,
    Message,
)
from ollama_adapter.errors import ContextOverflow, RemoteModelRefused, StreamInterrupted
from ollama_adapter.events import Candidate, Channel, Finish, Source, Statistics, TokenEvent

MS = 1_000_000
EPOCH_NS = 1_700_000_000_123_456_789
Records = Sequence[tuple[int, GenerateRecord | ChatRecord]]

words = st.text(st.sampled_from("ab é€😀\n\u2028"), max_size=4)
logprob = st.floats(-20, 0)
candidates = st.sampled_from(
    [[], [Candidate("a", -0.5)], [Candidate("b", -0.25), Candidate("", -1.5), Candidate("a", -9.0)]]
)
entries = st.builds(LogprobEntry, words, logprob, candidates)


@st.composite
def texts_with_entries(draw: st.DrawFn) -> tuple[str, list[LogprobEntry] | None]:
    """A text, and entries that concatenate to it, or do not, or none."""
    found = draw(st.lists(entries, max_size=3))
    joined = "".join(each.token for each in found)
    text = draw(st.sampled_from((joined, joined + "x", "")) | words)
    return text, draw(st.sampled_from((found, found, None)))


@st.composite
def records(draw: st.DrawFn) -> GenerateRecord | ChatRecord:
    text, found = draw(texts_with_entries())
    thinking = draw(st.just("") | words)
    token_ids = draw(st.none() | st.lists(st.integers(0, 9), max_size=3).map(tuple))
    if draw(st.booleans()):
        return GenerateRecord(response=text, thinking=thinking, logprobs=found, token_ids=token_ids)
    calls = draw(st.none() | st.just([]) | st.just([{"function": {"name": "f"}}]))
    message = draw(st.none() | st.just(Message(text, thinking, calls)))
    return ChatRecord(message=message, logprobs=found, token_ids=token_ids)


plain = st.builds(  # nearly every record of a stream
    GenerateRecord,
    response=st.sampled_from(("a", "b", " a", "")),
    logprobs=st.none() | st.lists(entries, max_size=1),
    token_ids=st.sampled_from((None, (), (7,))),
)
streams = st.lists(st.tuples(st.integers(0, 3 * 10**9), records()), max_size=6)


class Run:
    """A generation and what it delivered."""

    def __init__(self, *, truncate: bool = False) -> None:
        self.events: list[TokenEvent] = []
        self.statistics = Statistics("session", "asked", served_by="served")
        self.generation = Generation(
            self.statistics,
            EUMapper(profile_for(tier=Tier.MID)),
            EPOCH_NS,
            truncate=truncate,
        )
        self.now_ns = 5_000 * MS

    def feed(self, stream: Records) -> Run:
        for gap, record in stream:
            self.now_ns += gap
            self.events += self.generation.receive([record], self.now_ns)
        return self

    def say(self, *pieces: str, gap: int = MS) -> Run:
        return self.feed([(gap, GenerateRecord(response=each)) for each in pieces])

    def end(self, *, complete: bool = True, **last: Any) -> Finish | None:
        if last:
            self.feed([(0, GenerateRecord(done=True, **last))])
        finish = self.generation.ending(complete=complete)
        self.generation.close(self.now_ns)
        return finish


def parts(record: GenerateRecord | ChatRecord) -> tuple[str, str, list[dict[str, Any]]]:
    """Text, thinking and tool calls of a record."""
    if isinstance(record, GenerateRecord):
        return record.response, record.thinking, []
    message = record.message or Message()
    return message.content, message.thinking, message.tool_calls or []


@settings(max_examples=40)
@given(streams)
def test_the_tokens_of_a_channel_are_the_text_that_the_daemon_sent(stream: Records) -> None:
    events = Run().feed(stream).events
    said = [parts(record) for _, record in stream]

    def delivered(channel: Channel) -> str:
        return "".join(each.token for each in events if each.channel is channel)

    assert delivered(Channel.TEXT) == "".join(text for text, _, _ in said)
    assert delivered(Channel.THINKING) == "".join(thinking for _, thinking, _ in said)
    assert delivered(Channel.TOOL_CALLS) == ""
    assert [call for each in events for call in each.tool_calls or []] == [
        call for _, _, calls in said for call in calls
    ]
    for each in events:
        assert each.token or each.channel is Channel.TOOL_CALLS, "an empty token was delivered"


lasts = st.builds(GenerateRecord, done=st.booleans(), error=st.sampled_from((None, "no")))


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 10**9), st.lists(records() | plain | lasts, max_size=6))))
def test_a_read_is_taken_as_its_records_one_by_one(
    reads: list[tuple[int, list[GenerateRecord | ChatRecord]]],
) -> None:
    single, together = Run(), Run()
    for gap, read in reads:
        single.now_ns += gap
        together.now_ns += gap
        for record in read:
            single.feed([(0, record)])
        together.events += together.generation.receive(read, together.now_ns)
        assert together.events == single.events
    for run in (single, together):
        run.end(complete=True)
    assert together.statistics == single.statistics
    assert type(together.generation.error) is type(single.generation.error)


@pytest.mark.parametrize("kind", [GenerateRecord, ChatRecord])
@pytest.mark.parametrize("entries", [None, [LogprobEntry("a", -0.5, [Candidate("a", -0.25)])]])
def test_plain_tokens_of_one_read_are_taken_together(
    kind: Any, entries: list[LogprobEntry] | None
) -> None:
    said: dict[str, Any] = (
        {"response": "a"} if kind is GenerateRecord else {"message": Message(content="a")}
    )
    read = [kind(**said, logprobs=entries, token_ids=(n,)) for n in range(3)]
    single, together = Run().feed([(0, each) for each in read]), Run()
    events = together.generation.receive(read, together.now_ns)
    assert events == single.events
    assert [each.logprobs for each in events] == [[-0.25] if entries else None] * 3
    assert [each.logprob for each in events] == [-0.5 if entries else None] * 3
    assert [each.token_ids for each in events] == [(0,), (1,), (2,)]


@settings(max_examples=40)
@given(streams)
def test_events_are_numbered_and_never_go_back_in_time(stream: Records) -> None:
    run = Run().feed(stream)
    events = run.events
    assert [each.index for each in events] == list(range(len(events)))
    assert run.statistics.tokens == len(events)
    for before, after in itertools.pairwise(events):
        assert before.timestamp_ms <= after.timestamp_ms
        assert before.arrival_ns <= after.arrival_ns
        gap = after.arrival_ns - before.arrival_ns
        assert abs(after.delta_ms * MS - gap) <= MS // 2
    for each in events:
        assert each.timestamp_ms == (EPOCH_NS + each.arrival_ns) // MS
        assert (each.session_id, each.model, each.source) == ("session", "served", Source.LIVE)
        assert each.energy is not None
        assert 0 <= each.energy <= 1
    if events:
        assert events[0].delta_ms == 0
        assert run.generation.first_ns == events[0].arrival_ns
        assert run.generation.last_ns == events[-1].arrival_ns
    else:
        assert run.generation.first_ns == run.generation.last_ns == 0


@settings(max_examples=40)
@given(streams)
def test_a_record_is_an_event_per_entry_or_one_with_the_last_entrys_numbers(
    stream: Records,
) -> None:
    run = Run()
    for gap, record in stream:
        start = len(run.events)
        run.feed([(gap, record)])
        text, thinking, calls = parts(record)
        found = record.logprobs or []
        new = run.events[start:]
        for channel, said in ((Channel.THINKING, thinking), (Channel.TEXT, text)):
            own = [each for each in new if each.channel is channel]
            numbers = [] if channel is Channel.THINKING and text else found
            if not said:
                assert own == []
            elif numbers and "".join(each.token for each in numbers) == said:
                whole = [each for each in numbers if each.token]
                assert [(each.token, each.logprob) for each in own] == [
                    (each.token, each.logprob) for each in whole
                ]
            else:
                (event,) = own
                assert event.token == said
                assert event.logprob == (numbers[-1].logprob if numbers else None)
        tools = [each for each in new if each.channel is Channel.TOOL_CALLS]
        assert len(tools) == bool(calls)


@settings(max_examples=40)
@given(streams)
def test_the_ids_of_a_record_go_with_its_last_event(stream: Records) -> None:
    run = Run()
    for gap, record in stream:
        start = len(run.events)
        run.feed([(gap, record)])
        found = [each.token_ids for each in run.events[start:]]
        if found:
            assert found[-1] == record.token_ids
            assert set(found[:-1]) <= {None if record.token_ids is None else ()}


@settings(max_examples=40)
@given(streams)
def test_the_numbers_of_an_event_agree_with_each_other(stream: Records) -> None:
    for event in Run().feed(stream).events:
        if event.logprob is None:
            assert event.logprobs is None
            assert event.candidates is None
        elif event.candidates:
            assert event.logprobs == [each.logprob for each in event.candidates]
        else:
            assert event.logprobs == [event.logprob]


@settings(max_examples=40)
@given(streams)
def test_a_record_without_text_is_counted_and_not_delivered(stream: Records) -> None:
    run = Run().feed(stream)
    empty = sum(1 for _, record in stream if not any(parts(record)))
    assert run.statistics.empty_records == empty


@settings(max_examples=40)
@given(streams)
def test_the_same_records_at_the_same_times_give_the_same_events(stream: Records) -> None:
    assert Run().feed(stream).events == Run().feed(stream).events


def test_where_thinking_and_text_come_together_the_entries_are_the_texts() -> None:
    entry = LogprobEntry("b", -1.0, [])
    run = Run().feed([(0, GenerateRecord(response="b", thinking="a", logprobs=[entry]))])
    assert [(each.channel, each.token, each.logprob) for each in run.events] == [
        (Channel.THINKING, "a", None),
        (Channel.TEXT, "b", -1.0),
    ]


def test_a_token_that_need_not_be_among_its_candidates() -> None:
    entry = LogprobEntry(" riv", -3.5, [Candidate("a", -0.5), Candidate("b", -1.5)])
    (event,) = Run().feed([(0, GenerateRecord(response=" riv", logprobs=[entry]))]).events
    assert (event.logprob, event.logprobs) == (-3.5, [-0.5, -1.5])
    assert [each.token for each in event.candidates or []] == ["a", "b"]


def test_an_entry_whose_bytes_make_no_character_gives_no_event() -> None:
    """The tags of a thinking model, and special tokens, show as empty."""
    found = [LogprobEntry("a", -1.0, []), LogprobEntry("", -2.0, []), LogprobEntry("b", -3.0, [])]
    events = Run().feed([(0, GenerateRecord(response="ab", logprobs=found))]).events
    assert [(each.token, each.logprob) for each in events] == [("a", -1.0), ("b", -3.0)]


# The end


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("stop", Finish.STOP),
        ("length", Finish.LENGTH),
        ("load", Finish.LOAD),
        ("unload", Finish.UNLOAD),
        ("", Finish.STOP),
        ("aborted", Finish.STOP),
        ("SECRET", Finish.STOP),
    ],
)
@pytest.mark.parametrize("complete", [True, False])
def test_the_last_record_says_how_it_ended(reason: str, finish: Finish, complete: bool) -> None:
    run = Run().say("a")
    assert run.end(done_reason=reason, complete=complete) is finish
    assert run.generation.done
    assert run.generation.error is None


def test_the_daemons_own_figures_are_kept() -> None:
    run = Run().say("a", "b")
    run.end(
        total_duration=1,
        load_duration=2,
        prompt_eval_count=3,
        prompt_eval_duration=4,
        eval_count=5,
        eval_duration=6,
        response="c",
    )
    found = run.statistics
    assert (found.total_duration_ns, found.load_duration_ns, found.prompt_eval_count) == (1, 2, 3)
    assert (found.prompt_eval_duration_ns, found.eval_count, found.eval_duration_ns) == (4, 5, 6)
    assert (found.tokens, run.events[-1].token) == (3, "c")
    assert found.empty_records == 0


@pytest.mark.parametrize("complete", [True, False])
def test_without_a_last_record_nothing_is_taken_for_an_end(complete: bool) -> None:
    run = Run().say("a", "b")
    assert run.end(complete=complete) is None
    assert not run.generation.done
    assert run.statistics.finish is None


@pytest.mark.parametrize(
    ("pieces", "complete", "finish"),
    [
        (["x"] * (REPEAT_LIMIT + 1), True, Finish.REPEAT),
        (["x"] * REPEAT_LIMIT, True, None),
        (["x"] * (REPEAT_LIMIT + 1), False, None),  # cut, not ended
        (["a", *[" x", "x ", "\nx"] * 11], True, Finish.REPEAT),
        ([*["x"] * 40, "y"], True, None),
        ([" "] * (REPEAT_LIMIT + 1), True, Finish.REPEAT),
        ([*["x"] * 20, "y", *["x"] * 20], True, None),
        ([], True, None),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 7])
def test_the_token_repeat_guard_of_the_daemon_is_an_end_however_it_is_read(
    pieces: list[str], complete: bool, finish: Finish | None, size: int
) -> None:
    run = Run()
    for start in range(0, len(pieces), size):
        read = [GenerateRecord(response=each) for each in pieces[start : start + size]]
        run.generation.receive(read, run.now_ns)
    assert run.end(complete=complete) is finish


def test_a_repetition_that_ends_by_itself_is_no_repeat() -> None:
    assert Run().say(*["x"] * 50).end(done_reason="length") is Finish.LENGTH


@pytest.mark.parametrize("record", [GenerateRecord, ChatRecord])
def test_an_error_ends_it_and_is_no_empty_record(record: Any) -> None:
    run = Run().say("a", "b").feed([(MS, record(error="SECRET words"))])
    error = run.generation.error
    assert isinstance(error, StreamInterrupted)
    assert (error.session_id, error.tokens) == ("session", 2)
    assert "SECRET" not in str(error)
    assert run.statistics.empty_records == 0
    assert run.end() is None


@pytest.mark.parametrize("error", ["", False, 0, [], {}])
def test_an_error_that_looks_like_nothing_is_an_error(error: Any) -> None:
    run = Run().feed([(0, GenerateRecord(error=error, done=True))])
    assert isinstance(run.generation.error, StreamInterrupted)
    assert not run.generation.done


@pytest.mark.parametrize("done", [True, False])
def test_an_answer_from_another_machine_is_refused(done: bool) -> None:
    run = Run().feed([(0, GenerateRecord(response="a", remote_host="https://x", done=done))])
    assert isinstance(run.generation.error, RemoteModelRefused)
    assert not run.generation.done


def test_a_rendered_prompt_is_one_event_and_the_end() -> None:
    """The answer to `_debug_render_only` has no last record."""
    run = Run().feed([(0, GenerateRecord(debug_info=DebugInfo("<user>hello")))])
    assert [(each.token, each.channel) for each in run.events] == [("<user>hello", Channel.TEXT)]
    assert run.end() is Finish.STOP
    assert run.generation.done


# Truncation, by a daemon that does not know the word


@pytest.mark.parametrize(
    ("context", "prompt", "answer", "cut"),
    [
        (830, 66, 8, True),
        (74, 66, 8, False),
        (74 + TRUNCATION_SLACK, 66, 8, False),
        (75 + TRUNCATION_SLACK, 66, 8, True),
        (60, 66, 8, False),
        (0, 66, 8, False),  # no echo
    ],
)
def test_a_prompt_that_was_cut_is_noticed_by_the_counts(
    context: int, prompt: int, answer: int, cut: bool
) -> None:
    run = Run().say("a")
    run.end(prompt_eval_count=prompt, eval_count=answer)
    run.generation.check_truncation(context)
    if cut:
        error = run.generation.error
        assert isinstance(error, ContextOverflow)
        assert (error.prompt_tokens, error.context_tokens) == (context - answer, prompt)
    else:
        assert run.generation.error is None


def test_who_asked_for_truncation_gets_it() -> None:
    run = Run(truncate=True)
    run.end(prompt_eval_count=66, eval_count=8)
    run.generation.check_truncation(830)
    assert run.generation.error is None


# Statistics


def test_throughput_is_that_between_the_first_and_the_last_token() -> None:
    run = Run().say("a", "b", "c", "d", "e", gap=50 * MS)
    run.now_ns += 9_000 * MS
    run.end(eval_count=5)
    assert run.statistics.tps == pytest.approx(20.0)


@pytest.mark.parametrize("pieces", [[], ["a"]])
def test_fewer_than_two_tokens_have_no_throughput(pieces: list[str]) -> None:
    run = Run().say(*pieces)
    run.end(eval_count=len(pieces))
    assert run.statistics.tps is None
    assert (run.statistics.mean_energy is None) is (not pieces)


def test_tokens_that_arrive_at_once_have_no_throughput() -> None:
    run = Run().say("a", "b", "c", gap=0)
    run.end(eval_count=3)
    assert run.statistics.tps is None


@settings(max_examples=40)
@given(streams)
def test_the_mean_energy_is_that_of_the_events(stream: Records) -> None:
    run = Run().feed(stream)
    run.end(complete=False)
    energies = [each.energy or 0.0 for each in run.events]
    if energies:
        assert run.statistics.mean_energy == pytest.approx(sum(energies) / len(energies))
    else:
        assert run.statistics.mean_energy is None


def test_closing_twice_changes_nothing() -> None:
    run = Run().say("a", "b")
    run.end(eval_count=2)
    before = repr(run.statistics)
    run.end(complete=False)
    assert repr(run.statistics) == before


def test_an_answer_from_memory_has_no_energy() -> None:
    statistics = Statistics("s", "m", tokens=2, cached_age_s=3.0)
    generation = Generation(statistics, EUMapper(profile_for("fnd-002/2")), 0)
    generation.close(5)
    assert statistics.mean_energy is None
