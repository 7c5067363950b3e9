"""The grid, the ledger (frames sum to the stream, whatever the ticks), and the event of WF-TECH-005."""

from __future__ import annotations

import math
from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.frames import (
    LIVELIEST,
    FrameComposer,
    due_tick,
    energy_update,
    next_tick,
    tick_instant,
)
from ollama_adapter.events import Frame, SessionFrame, State, TokenEvent

MS = 1_000_000  # in nanoseconds
MID = profile_for("fnd-002/2", Tier.MID)
SECOND = 1000 * MS


def token(
    session_id: str, at_ns: int, energy: float | None = 0.5, index: int = 0, text: str = "x"
) -> TokenEvent:
    return TokenEvent(text, 0, 0, session_id, "m", energy=energy, index=index, arrival_ns=at_ns)


# --- the grid ---------------------------------------------------------------------------------------


@given(
    st.integers(-(10**18), 10**18),
    st.integers(-10 * SECOND, 10**6 * SECOND),
    st.integers(1, 1000),
    st.integers(0, 10**9),
)
def test_the_next_tick_is_the_first_that_is_not_past(
    start_ns: int, since_ns: int, rate_hz: int, tick: int
) -> None:
    now_ns = start_ns + since_ns
    found = next_tick(start_ns, now_ns, rate_hz, tick)
    assert found > tick
    assert tick_instant(start_ns, found, rate_hz) >= now_ns
    assert found == tick + 1 or tick_instant(start_ns, found - 1, rate_hz) < now_ns


@given(
    st.integers(-(10**18), 10**18),
    st.integers(-10 * SECOND, 10**6 * SECOND),
    st.integers(1, 1000),
    st.integers(0, 10**9),
)
def test_a_ticker_that_wakes_late_shows_the_last_tick_that_is_due(
    start_ns: int, since_ns: int, rate_hz: int, tick: int
) -> None:
    now_ns = start_ns + since_ns
    found = due_tick(start_ns, now_ns, rate_hz, tick)
    assert found >= tick
    assert found == tick or tick_instant(start_ns, found, rate_hz) <= now_ns
    assert tick_instant(start_ns, found + 1, rate_hz) > now_ns


@pytest.mark.parametrize(
    ("now_ns", "tick", "found"),
    [(33_333_333, 1, 2), (33_333_332, 1, 1), (SECOND, 4, 60), (0, 4, 4), (-SECOND, 4, 4)],
)
def test_due_tick_by_hand(now_ns: int, tick: int, found: int) -> None:
    assert due_tick(0, now_ns, 60, tick) == found


@given(st.integers(0, 10**18), st.integers(1, 1000), st.integers(0, 10**7))
def test_the_grid_does_not_drift(start_ns: int, rate_hz: int, seconds: int) -> None:
    assert tick_instant(start_ns, seconds * rate_hz, rate_hz) == start_ns + seconds * SECOND


@pytest.mark.parametrize(
    ("now_ns", "tick", "found"),
    [
        (0, 0, 1),
        (16_666_666, 0, 1),  # exactly due
        (16_666_667, 0, 2),  # a nanosecond too late
        (50 * MS, 0, 3),
        (50 * MS, 3, 4),  # woken early: this one is done
        (SECOND, 0, 60),
        (-5, 0, 1),
    ],
)
def test_next_tick_by_hand(now_ns: int, tick: int, found: int) -> None:
    assert next_tick(0, now_ns, 60, tick) == found


# --- the ledger -------------------------------------------------------------------------------------


class Token(NamedTuple):
    gap_ns: int
    session: int
    logprob: float | None


class Run(NamedTuple):
    frames: list[Frame]
    events: list[TokenEvent]
    ticks: list[int]


gaps = st.one_of(st.integers(0, 40 * MS), st.integers(0, 2 * SECOND))
rows = st.lists(
    st.builds(Token, gaps, st.integers(0, 2), st.one_of(st.none(), st.floats(-5.0, 0.0))),
    max_size=40,
)
SESSIONS = ("a", "b", "c")
WEIGHTS = (1.0, 2.0, 0.0)


def run(tokens: list[Token], composed: frozenset[int] | None = None) -> Run:
    """Three sessions that end after their last tokens; frames at the ticks `composed` (None: all)."""
    composer, frames, events, ticks = FrameComposer(), [], [], []
    mappers = [EUMapper(MID) for _ in SESSIONS]
    for name, mapper, weight in zip(SESSIONS, mappers, WEIGHTS, strict=True):
        composer.open(name, mapper, 0, weight)
    counts = Counter[int]()
    arrivals = []
    now_ns = 0
    for each in tokens:
        now_ns += each.gap_ns
        arrivals.append((now_ns, each))
    ends = dict.fromkeys(range(3), 0)
    ends.update({each.session: at_ns for at_ns, each in arrivals})
    tick = 0
    while composer.active or arrivals:
        tick += 1
        at_ns = tick_instant(0, tick, 60)
        while arrivals and arrivals[0][0] <= at_ns:
            now_ns, each = arrivals.pop(0)
            logprobs = None if each.logprob is None else [each.logprob]
            energy = mappers[each.session].token(now_ns, logprobs)
            event = token(SESSIONS[each.session], now_ns, energy, counts[each.session])
            counts[each.session] += 1
            composer.ingest(event)
            events.append(event)
        for number, end_ns in list(ends.items()):
            if end_ns <= at_ns:
                del ends[number]
                mappers[number].end(end_ns)
                composer.end(SESSIONS[number], end_ns)
        if composed is None or tick in composed or tick % 2000 == 0:
            frames.append(composer.compose(tick, at_ns, tick * 7))
            ticks.append(tick)
    return Run(frames, events, ticks)


ticks = st.frozensets(st.integers(1, 1500), max_size=80)


@given(rows, ticks)
def test_the_sum_of_the_frames_is_the_stream(tokens: list[Token], composed: frozenset[int]) -> None:
    frames, events, _ = run(tokens, composed)
    assert sum(frame.new_tokens for frame in frames) == len(events)
    shown: dict[str, list[int]] = {name: [] for name in SESSIONS}
    for frame in frames:
        for name, each in frame.sessions.items():
            assert (each.first is None) == (each.last is None) == (each.tokens == 0)
            if each.first is not None and each.last is not None:
                assert each.last - each.first + 1 == each.tokens
                shown[name] += range(each.first, each.last + 1)
        assert frame.new_tokens == sum(each.tokens for each in frame.sessions.values())
        assert frame.tokens_merged == frame.new_tokens - sum(
            1 for each in frame.sessions.values() if each.tokens
        )
    for name in SESSIONS:  # every index once, in order
        assert shown[name] == [each.index for each in events if each.session_id == name]
    # energies are added in another order than they came in
    total = math.fsum(each.energy or 0.0 for each in events)
    assert math.fsum(each.energy_generated for each in frames) == pytest.approx(total, rel=1e-12)


@given(rows, ticks)
def test_the_total_is_the_running_sum_of_the_frames_to_the_last_bit(
    tokens: list[Token], composed: frozenset[int]
) -> None:
    total = 0.0
    for frame in run(tokens, composed).frames:
        total += frame.energy_generated
        assert frame.total_energy == total


@given(rows, ticks)
def test_skipped_ticks_change_nothing(tokens: list[Token], composed: frozenset[int]) -> None:
    """A frame after skipped ticks shows what it would have shown without; only its counts are sums."""
    every = {frame.frame_id: frame for frame in run(tokens).frames}
    for frame in run(tokens, composed).frames:
        full = every.get(frame.frame_id)
        if full is None:  # without skipping, everything had drained and was gone by now
            assert frame.energy == frame.energy_rate == 0.0
            assert frame.state is State.DRAINED
            continue
        assert frame.energy == full.energy
        assert frame.energy_rate == full.energy_rate
        assert frame.state is full.state
        assert frame.total_energy == pytest.approx(full.total_energy, rel=1e-12)  # another order
        for name, each in full.sessions.items():
            assert frame.sessions[name].energy == each.energy
            assert frame.sessions[name].state is each.state


@given(rows, ticks)
def test_skipped_ticks_are_counted(tokens: list[Token], composed: frozenset[int]) -> None:
    frames, _, made = run(tokens, composed)
    assert [frame.frame_id for frame in frames] == made
    before = made[0]
    for frame in frames[1:]:
        assert frame.skipped == frame.frame_id - before - 1
        before = frame.frame_id
    assert frames[0].skipped == 0


@given(rows, ticks)
def test_a_session_leaves_after_a_frame_has_shown_it_drained(
    tokens: list[Token], composed: frozenset[int]
) -> None:
    frames = run(tokens, composed).frames
    for name in SESSIONS:
        shown = [frame.sessions[name] for frame in frames if name in frame.sessions]
        assert shown[-1].state is State.DRAINED
        assert shown[-1].energy == 0.0
        present = [name in frame.sessions for frame in frames]
        assert present == sorted(present, reverse=True)
    assert frames[-1].energy_rate == 0.0


@given(rows)
def test_the_rate_is_the_faded_sum_of_the_energies(tokens: list[Token]) -> None:
    frames, events, _ = run(tokens)
    for frame in frames[::7]:
        rate = math.fsum(
            (each.energy or 0.0) * math.exp(-(frame.monotonic_ns - each.arrival_ns) / SECOND)
            for each in events
            if each.arrival_ns <= frame.monotonic_ns
        )
        # a session whose part is below 1/512 counts as none
        assert frame.energy_rate == pytest.approx(rate, abs=3 / 512)


odd_energy = st.one_of(
    st.none(), st.floats(), st.sampled_from([math.nan, math.inf, -math.inf, -0.1, 1.1, 0.5])
)
stamps = st.one_of(st.integers(0, 10 * SECOND), st.integers(-(10**15), 10**15))


@given(
    st.lists(st.tuples(st.sampled_from("abz"), stamps, odd_energy, st.integers(-5, 5)), max_size=30)
)
def test_no_event_makes_ingest_raise_or_a_frame_absurd(
    given_events: list[tuple[str, int, float | None, int]],
) -> None:
    composer = FrameComposer()
    composer.open("a", EUMapper(MID), 0)
    composer.open("b", EUMapper(MID), 0)
    composer.end("b", 0)
    for session_id, at_ns, energy, index in given_events:
        composer.ingest(token(session_id, at_ns, energy, index))
    frame = composer.compose(1, 10 * SECOND, 0)
    assert frame.new_tokens == len(given_events)
    assert 0.0 <= frame.energy_generated <= len(given_events)
    assert 0.0 <= frame.energy_rate <= len(given_events)
    assert 0.0 <= frame.energy <= 1.0


# --- by hand ----------------------------------------------------------------------------------------


def test_a_session_by_hand() -> None:
    composer, mapper = FrameComposer(), EUMapper(MID)
    assert not composer.active
    composer.open("a", mapper, 0)
    assert composer.active
    first = composer.compose(10, 0, 1000, queue_depth=3, processing_ns=5)
    assert first == Frame(
        frame_id=10,
        monotonic_ns=0,
        epoch_ms=1000,
        new_tokens=0,
        energy_generated=0.0,
        total_energy=0.0,
        energy_rate=0.0,
        energy=0.0,
        state=State.CHARGING,
        sessions={"a": SessionFrame(0.0, State.CHARGING)},
        queue_depth=3,
        processing_ns=5,
    )
    energies = [mapper.token(SECOND, [0.0]), mapper.token(SECOND, [0.0])]
    for index, energy in enumerate(energies):
        composer.ingest(token("a", SECOND, energy, 4 + index))
    second = composer.compose(13, SECOND, 2000)
    assert second.sessions == {"a": SessionFrame(energies[1], State.FLOWING, 2, 4, 5)}
    assert second.energy == energies[1]
    assert second.energy_generated == second.total_energy == sum(energies) == second.energy_rate
    assert (second.new_tokens, second.tokens_merged, second.skipped) == (2, 1, 2)
    third = composer.compose(14, 2 * SECOND, 3000)
    assert third.energy_rate == pytest.approx(sum(energies) / math.e)
    assert third.sessions["a"].state is State.STALLING
    assert (third.new_tokens, third.energy_generated, third.skipped) == (0, 0.0, 0)
    assert third.total_energy == sum(energies)


def test_after_sleep_nothing_was_skipped() -> None:
    composer, mapper = FrameComposer(), EUMapper(MID)
    composer.open("a", mapper, 0)
    mapper.end(0)
    composer.end("a", 0)
    assert composer.compose(5, 10, 0).state is State.DRAINED
    assert not composer.active
    composer.open("b", EUMapper(MID), 20)
    assert composer.compose(500, 30, 0).skipped == 0
    assert composer.compose(502, 40, 0).skipped == 1
    assert composer.compose(502, 40, 0).skipped == 0  # the same tick again: none in between


def test_it_continues_an_earlier_account() -> None:
    composer = FrameComposer(total_energy=2.5, tick=7)
    composer.open("a", EUMapper(MID), 0)
    frame = composer.compose(10, 0, 0)
    assert (frame.total_energy, frame.skipped) == (2.5, 2)


def test_a_token_of_no_open_session_is_counted_and_shown_once_as_drained() -> None:
    composer = FrameComposer()
    composer.ingest(token("ghost", 0, 0.001, 3))
    composer.ingest(token("ghost", 0, 0.0, 4))
    frame = composer.compose(1, 0, 0)
    assert frame.sessions == {"ghost": SessionFrame(0.0, State.DRAINED, 2, 3, 4)}
    assert frame.energy_generated == 0.001
    assert not composer.active


def test_a_stray_token_does_not_dim_the_others() -> None:
    composer, mapper = FrameComposer(), EUMapper(MID)
    composer.open("a", mapper, 0)
    energy = mapper.token(0, [0.0])
    composer.ingest(token("a", 0, energy))
    composer.ingest(token("ghost", 0))
    assert composer.compose(1, 0, 0).energy == energy


def test_a_token_after_the_end_is_counted_and_wakes_nobody() -> None:
    composer, mapper = FrameComposer(), EUMapper(MID)
    composer.open("a", mapper, 0)
    composer.ingest(token("a", 0))
    composer.end("a", 0)
    composer.ingest(token("a", 1, index=1))
    frame = composer.compose(1, 2, 0)
    assert frame.sessions["a"] == SessionFrame(0.0, State.DRAINED, 2, 0, 1)
    assert frame.energy_generated == 1.0


def test_the_end_of_an_unknown_session_is_ignored() -> None:
    composer = FrameComposer()
    composer.end("ghost", 0)
    assert not composer.active


def test_a_session_whose_stream_is_cut_stalls_in_the_next_frame() -> None:
    composer = FrameComposer()
    composer.open("a", EUMapper(MID), 0)
    composer.ingest(token("a", 1))
    composer.interrupt("a", 2)
    composer.interrupt("ghost", 2)
    assert composer.compose(1, 3, 0).sessions["a"].state is State.STALLING


def test_an_id_may_serve_again_and_nothing_is_lost() -> None:
    composer, mapper = FrameComposer(), EUMapper(MID)
    composer.open("a", EUMapper(MID), 0)
    composer.ingest(token("a", 0, 0.25, 9))
    composer.end("a", 0)
    composer.open("a", mapper, 2 * SECOND, weight=3.0)
    composer.ingest(token("a", 3 * SECOND, mapper.token(3 * SECOND, [0.0]), 0))
    frame = composer.compose(1, 3 * SECOND, 0)
    assert frame.new_tokens == 2
    assert frame.energy_generated == 0.25 + mapper.energy
    assert frame.sessions["a"].state is State.FLOWING
    assert frame.energy == mapper.energy
    composer.ingest(token("a", 3 * SECOND + 401 * MS, 0.5, 1))  # late once: its gap is its own
    assert composer.compose(2, 3 * SECOND + 402 * MS, 0).state is State.FLOWING


def test_a_clock_that_steps_back_does_not_freeze_the_rate() -> None:
    composer = FrameComposer()
    composer.open("a", EUMapper(MID), 0)
    composer.ingest(token("a", 3600 * SECOND, 1.0))
    assert composer.compose(1, 10 * SECOND, 0).energy_rate == 1.0
    composer.ingest(token("a", 10 * SECOND, 0.0, 1))
    assert composer.compose(2, 11 * SECOND, 0).energy_rate == pytest.approx(1 / math.e)


@pytest.mark.parametrize("weight", [-0.1, math.nan, math.inf])
def test_a_weight_that_is_none_is_refused(weight: float) -> None:
    composer = FrameComposer()
    with pytest.raises(ValueError, match="weight"):
        composer.open("a", EUMapper(MID), 0, weight)
    assert not composer.active


def test_weights_count_in_the_ensemble() -> None:
    composer = FrameComposer()
    strong, weak = EUMapper(MID), EUMapper(MID)
    composer.open("strong", strong, 0, weight=3.0)
    composer.open("weak", weak, 0)
    strong.energy = 0.8
    strong.end(0)
    assert composer.compose(1, 0, 0).energy == pytest.approx(0.6)


def test_a_session_that_has_drained_has_no_weight() -> None:
    composer = FrameComposer()
    gone, here = EUMapper(MID), EUMapper(MID)
    composer.open("gone", gone, 0)
    composer.open("here", here, 0)
    here.energy = 0.8
    here.end(0)
    composer.end("gone", 0)
    assert composer.compose(1, 0, 0).energy == 0.8


STAMPS = {  # when tokens of 0.9 EU came, in ms; each leads to that state at 1000
    State.SATURATED: range(0, 1001, 100),
    State.FLOWING: [1000],
    State.CHARGING: [],
    State.STALLING: [0],
    State.DRAINED: [1000],
}


@pytest.mark.parametrize("first", STAMPS)
@pytest.mark.parametrize("second", STAMPS)
def test_a_frame_shows_the_state_of_the_liveliest(first: State, second: State) -> None:
    composer = FrameComposer()
    for name, state in (("a", first), ("b", second)):
        composer.open(name, EUMapper(MID), 0)
        for at_ms in STAMPS[state]:
            composer.ingest(token(name, at_ms * MS, 0.9))
        if state is State.DRAINED:
            composer.end(name, 1000 * MS)
    frame = composer.compose(1, 1000 * MS, 0)
    assert [each.state for each in frame.sessions.values()] == [first, second]
    order = list(STAMPS)
    assert frame.state is order[min(order.index(first), order.index(second))]


def test_a_frame_of_nothing_is_idle() -> None:
    frame = FrameComposer().compose(1, 0, 0)
    assert frame.state is State.IDLE
    assert frame.sessions == {}
    assert set(LIVELIEST) == set(State)


# --- the event of WF-TECH-005 -----------------------------------------------------------------------

REQUIRED = {"frame_id", "new_tokens", "energy_generated", "total_energy", "energy_rate", "state"}
OPTIONAL = {
    "queue_depth", "processing_time_ms", "particles", "interference", "resonance", "performance",
}  # fmt: skip


@pytest.mark.parametrize("state", State)
def test_the_event_has_the_allowed_keys_and_states(state: State) -> None:
    frame = Frame(
        9, 1, 1700000000123, 2, 0.5, 7.25, 1.5, 0.9, state, {}, queue_depth=4, processing_ns=250_000
    )
    event = energy_update(frame)
    assert set(event) == {"id", "type", "timestamp", "version", "payload"}
    assert REQUIRED <= set(event["payload"]) <= REQUIRED | OPTIONAL
    shown = "FLOWING" if state is State.SATURATED else state.value.upper()
    assert event == {
        "id": "frame-9",
        "type": "energy.update",
        "timestamp": 1700000000123,
        "version": "1.0",
        "payload": {
            "frame_id": 9,
            "new_tokens": 2,
            "energy_generated": 0.5,
            "total_energy": 7.25,
            "energy_rate": 1.5,
            "state": shown,
            "queue_depth": 4,
            "processing_time_ms": 0.25,
        },
    }


def test_the_event_takes_a_uuid_and_at_most_100_tokens() -> None:
    frame = Frame(9, 1, 2, 101, 0.5, 7.25, 1.5, 0.9, State.FLOWING, {})
    event = energy_update(frame, event_id="0a6d6f4e-6d3c-4a55-8a0c-1c1b2f0c9f10")
    assert event["id"] == "0a6d6f4e-6d3c-4a55-8a0c-1c1b2f0c9f10"
    assert event["payload"]["new_tokens"] == 100


def test_no_text_gets_into_a_frame() -> None:
    composer = FrameComposer()
    composer.open("a", EUMapper(MID), 0)
    composer.ingest(token("a", 0, text="canary"))
    frame = composer.compose(1, 0, 0)
    assert "canary" not in repr(frame) + repr(energy_update(frame))
