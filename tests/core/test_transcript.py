"""What was delivered, and a second run beside it."""

from __future__ import annotations

from math import log
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.transcript import Replay, Transcript, overlap
from ollama_adapter.events import Candidate, Channel, TokenEvent


def event(
    token: str,
    channel: Channel = Channel.TEXT,
    ids: tuple[int, ...] | None = None,
    calls: list[dict[str, Any]] | None = None,
    candidates: list[Candidate] | None = None,
) -> TokenEvent:
    return TokenEvent(
        token,
        0,
        0,
        "s",
        "m",
        channel=channel,
        token_ids=ids,
        tool_calls=calls,
        candidates=candidates,
    )


def transcript_of(*events: TokenEvent) -> Transcript:
    made = Transcript()
    for each in events:
        made.add([each])
    return made


def predicted(**probabilities: float) -> list[Candidate]:
    return [Candidate(token, log(p)) for token, p in probabilities.items()]


PIECES = st.lists(
    st.tuples(st.sampled_from([Channel.THINKING, Channel.TEXT]), st.text(min_size=1, max_size=4)),
    min_size=1,
    max_size=30,
)


@given(PIECES)
def test_the_text_of_each_channel_is_what_was_delivered(
    pieces: list[tuple[Channel, str]],
) -> None:
    made = transcript_of(*(event(text, channel) for channel, text in pieces))
    assert len(made) == len(pieces)
    for channel in (Channel.THINKING, Channel.TEXT):
        assert made.text(channel) == "".join(text for each, text in pieces if each is channel)
    assert len(made) == len(pieces)


def test_a_long_answer_is_kept_as_text_and_ids() -> None:
    made = transcript_of(*(event("a", ids=(n,)) for n in range(100)))
    assert made.ids == list(range(100))
    assert made.text(Channel.TEXT) == "a" * 100


def test_one_token_without_an_id_and_there_are_none() -> None:
    assert transcript_of(event("a", ids=(1,)), event("b"), event("c", ids=(3,))).ids is None
    assert transcript_of(event("é", ids=(1, 2)), event("c", ids=(3,))).ids == [1, 2, 3]


def test_no_repr_shows_what_was_delivered() -> None:
    made = transcript_of(event("secret"))
    assert "secret" not in repr(made) + repr(Replay.of(made))


def slices(text: str, sizes: list[int]) -> list[str]:
    pieces = []
    for size in sizes:
        pieces.append(text[:size])
        text = text[size:]
    return [each for each in [*pieces, text] if each]


@given(
    st.text(min_size=1, max_size=30),
    st.text(max_size=10),
    st.lists(st.integers(1, 5), max_size=20),
    st.lists(st.integers(1, 5), max_size=20),
)
def test_a_second_run_gives_what_is_new_however_it_is_cut(
    before: str, after: str, first: list[int], second: list[int]
) -> None:
    replay = Replay.of(transcript_of(*map(event, slices(before, first))))
    new = [replay.admit(each, Channel.TEXT, None) for each in slices(before + after, second)]
    assert "".join(new) == after
    assert replay.complete and not replay.diverged


@given(st.text("ab", min_size=1, max_size=20), st.text("ab", min_size=1, max_size=20))
def test_a_second_run_that_differs_is_found_at_the_first_difference(
    before: str, other: str
) -> None:
    replay = Replay.of(transcript_of(event(before)))
    new = "".join(replay.admit(each, Channel.TEXT, None) for each in other)
    if other.startswith(before):
        assert replay.complete and new == other[len(before) :]
    else:
        assert new == "" and not replay.complete
        assert replay.diverged == (not before.startswith(other))
    if replay.diverged:
        assert replay.admit("x", Channel.TEXT, None) == ""
        assert not replay.admit_calls([])


def test_a_run_from_the_last_token_must_begin_with_it() -> None:
    seen = predicted(a=0.9, b=0.1)
    replay = Replay.of_last(event(" a", candidates=seen))
    assert [replay.admit(each, Channel.TEXT, seen) for each in (" a", " b")] == ["", " b"]
    assert (replay.complete, replay.fidelity) == (True, 1.0)
    other = Replay.of_last(event(" a"))
    assert other.admit(" a", Channel.THINKING, None) == "" and other.diverged


def test_thinking_comes_before_text_again() -> None:
    replay = Replay.of(transcript_of(event("hm", Channel.THINKING), event("yes")))
    assert replay.admit("hm", Channel.THINKING, None) == ""
    assert replay.admit("yes", Channel.TEXT, None) == ""
    assert replay.admit("!", Channel.TEXT, None) == "!"
    early = Replay.of(transcript_of(event("hm", Channel.THINKING), event("yes")))
    assert early.admit("yes, sir", Channel.TEXT, None) == ""
    assert early.diverged


def test_tool_calls_are_compared_whole() -> None:
    call, other = [{"function": {"name": "f"}}], [{"function": {"name": "g"}}]
    delivered = transcript_of(event("", Channel.TOOL_CALLS, calls=call))
    replay = Replay.of(delivered)
    assert not replay.admit_calls(call) and replay.complete
    assert replay.admit_calls(other)
    assert not (differs := Replay.of(delivered)).admit_calls(other) and differs.diverged
    assert (
        not (unasked := Replay.of(transcript_of(event("a")))).admit_calls(call) and unasked.diverged
    )


def test_the_fidelity_of_a_second_run_is_that_of_its_last_known_token() -> None:
    seen = predicted(a=0.9, b=0.1)
    replay = Replay.of(transcript_of(event("x"), event("a", candidates=seen)))
    replay.admit("x", Channel.TEXT, predicted(x=1.0))
    assert replay.fidelity is None
    replay.admit("a", Channel.TEXT, seen)
    assert replay.fidelity == 1.0


def test_overlap_is_the_shared_part_of_what_both_cover() -> None:
    assert overlap(predicted(a=0.5, b=0.5), predicted(a=0.5, c=0.5)) == pytest.approx(0.5)
    assert overlap(predicted(a=0.8), predicted(a=0.8, b=0.1)) == pytest.approx(1.0)
    assert overlap(predicted(a=0.5), predicted(b=0.5)) == 0.0
    assert overlap(None, predicted(a=1.0)) is None
    assert overlap([], predicted(a=1.0)) is None
    assert overlap([Candidate("a", -1e9)], predicted(a=1.0)) is None


CANDIDATES = st.lists(
    st.tuples(st.text(max_size=2), st.floats(-30, 0)),
    min_size=1,
    max_size=8,
    unique_by=lambda e: e[0],
).map(lambda pairs: [Candidate(*each) for each in pairs])


@given(CANDIDATES, CANDIDATES)
def test_overlap_is_symmetric_within_bounds_and_1_for_equals(
    p: list[Candidate], q: list[Candidate]
) -> None:
    assert overlap(p, p) == 1.0
    assert overlap(p, q) == overlap(q, p)
    assert 0.0 <= (overlap(p, q) or 0.0) <= 1.0


def test_a_read_of_many_is_the_same_as_its_events_one_by_one() -> None:
    thought, called = event("c", Channel.THINKING, (3,)), event("", Channel.TOOL_CALLS, calls=[{}])
    for events in ([event("a", ids=(1,)), event("b", ids=(2,))], [event("a"), thought, called]):
        single, together = transcript_of(*events), Transcript()
        together.add(events)
        for channel in (Channel.TEXT, Channel.THINKING):
            assert together.text(channel) == single.text(channel)
        assert together.ids == single.ids
        assert together.tool_calls == single.tool_calls
        assert len(together) == len(single) == len(events)
        assert together.last is events[-1]


def test_a_transcript_tells_how_long_it_took() -> None:
    made = Transcript()
    assert made.written_s == 0.0
    for arrival_ns in (2_000_000_000, 3_500_000_000, 9_000_000_000):
        made.add([TokenEvent("x", 0, 0, "s", "m", arrival_ns=arrival_ns)])
    assert made.written_s == 7.0
