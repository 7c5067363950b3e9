"""The state table, whole; its guards against a slow simulation; and that looking changes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.energy import EUMapper, decayed, profile_for
from ollama_adapter.core.session_state import (
    HIGH,
    LOW,
    TRANSITIONS,
    Signal,
    Transition,
    fall_ns,
)
from ollama_adapter.events import State
from tests.recorded import Recorded

MS = 1_000_000  # in nanoseconds
MID = profile_for("fnd-002/2", Tier.MID)  # stall 400 ms
PAGE = Path(__file__).parents[2] / "docs" / "energy.md"

# --- the table --------------------------------------------------------------------------------------

EXPECTED = {
    (State.IDLE, Signal.REQUEST): State.CHARGING,
    (State.CHARGING, Signal.TOKEN): State.FLOWING,
    (State.CHARGING, Signal.ENDED): State.DRAINED,
    (State.FLOWING, Signal.SURGE): State.SATURATED,
    (State.FLOWING, Signal.LATE): State.STALLING,
    (State.FLOWING, Signal.SILENT): State.STALLING,
    (State.FLOWING, Signal.CUT): State.STALLING,
    (State.FLOWING, Signal.ENDED): State.DRAINED,
    (State.SATURATED, Signal.EBB): State.FLOWING,
    (State.SATURATED, Signal.LATE): State.STALLING,
    (State.SATURATED, Signal.SILENT): State.STALLING,
    (State.SATURATED, Signal.CUT): State.STALLING,
    (State.SATURATED, Signal.ENDED): State.DRAINED,
    (State.STALLING, Signal.IN_TIME): State.FLOWING,
    (State.STALLING, Signal.ENDED): State.DRAINED,
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("signal", Signal)
def test_every_state_and_signal(state: State, signal: Signal) -> None:
    assert TRANSITIONS[state].get(signal) is EXPECTED.get((state, signal))


def test_the_diagram_of_the_page_is_the_table() -> None:
    diagram = PAGE.read_text().split("```mermaid\n")[1].split("```")[0]
    drawn = {
        (State(source.lower()), Signal(signal)): State(target.lower())
        for source, target, signals in re.findall(r"^ +(\w+) --> (\w+): (.+)$", diagram, re.M)
        for signal in signals.split(", ")
    }
    assert drawn == EXPECTED


# --- every state, every call ------------------------------------------------------------------------


def idle() -> Recorded:
    return Recorded(MID)


def charging() -> Recorded:
    tracker = idle()
    tracker.request(0)
    return tracker


def flowing() -> Recorded:
    tracker = charging()
    tracker.token(0, 0.8, 0)
    return tracker


def saturated() -> Recorded:
    tracker = charging()
    for at_ms in range(0, 1000, 100):
        tracker.token(at_ms * MS, 0.9, 100 * MS)
    return tracker


def stalling() -> Recorded:
    tracker = flowing()
    tracker.advance(800 * MS)
    return tracker


def drained() -> Recorded:
    tracker = flowing()
    tracker.end(0)
    return tracker


Make = Callable[[], Recorded]
LAST_NS = {saturated: 900 * MS}


@pytest.mark.parametrize(
    ("make", "state"),
    [
        (idle, State.IDLE),
        (charging, State.CHARGING),
        (flowing, State.FLOWING),
        (saturated, State.SATURATED),
        (stalling, State.STALLING),
        (drained, State.DRAINED),
    ],
)
def test_the_states_are_reached(make: Make, state: State) -> None:
    assert make().state is state


@pytest.mark.parametrize(
    ("make", "after_token", "after_low", "after_late", "after_hour", "after_end", "after_request"),
    [
        (idle, "idle", "idle", "idle", "idle", "idle", "charging"),
        (charging, "flowing", "flowing", "flowing", "charging", "drained", "charging"),
        (flowing, "flowing", "flowing", "flowing", "stalling", "drained", "flowing"),
        (saturated, "saturated", "flowing", "saturated", "stalling", "drained", "saturated"),
        (stalling, "flowing", "flowing", "stalling", "stalling", "drained", "stalling"),
        (drained, "drained", "drained", "drained", "drained", "drained", "drained"),
    ],
)
def test_what_happens_to_each(
    make: Make,
    after_token: str,
    after_low: str,
    after_late: str,
    after_hour: str,
    after_end: str,
    after_request: str,
) -> None:
    now_ns = LAST_NS.get(make, 0) + 100 * MS

    def state_after(act: Callable[[Recorded], None]) -> str:
        tracker = make()
        act(tracker)
        return tracker.state

    assert state_after(lambda it: it.token(now_ns, 0.8, 100 * MS)) == after_token
    assert state_after(lambda it: it.token(now_ns, 0.1, 100 * MS)) == after_low
    assert state_after(lambda it: it.token(now_ns, 0.8, 401 * MS)) == after_late
    assert state_after(lambda it: it.advance(now_ns + 3600_000 * MS)) == after_hour
    assert state_after(lambda it: it.end(now_ns)) == after_end
    assert state_after(lambda it: it.request(now_ns)) == after_request


# --- the guards, to the nanosecond ------------------------------------------------------------------


def surging() -> Recorded:
    """E rises to 0.9 at 1 s, and tokens follow every 100 ms."""
    tracker = charging()
    tracker.token(900 * MS, 0.84, 0)
    tracker.token(1000 * MS, 0.9, 100 * MS)
    for at_ms in range(1100, 1800, 100):
        tracker.token(at_ms * MS, 0.9, 100 * MS)
    return tracker


def test_surge_comes_800_ms_after_the_rise() -> None:
    tracker = surging()
    tracker.advance(1800 * MS - 1)
    assert tracker.state is State.FLOWING
    tracker.advance(1800 * MS)
    assert tracker.transitions[-1] == Transition(State.SATURATED, 1800 * MS)


def test_the_limits_belong_to_the_upper_side() -> None:
    """0.85 is high, and 0.70 is no ebb."""
    tracker = charging()
    for at_ms in range(0, 900, 100):
        tracker.token(at_ms * MS, 0.85, 100 * MS)
    assert tracker.transitions[-1] == Transition(State.SATURATED, 800 * MS)
    tracker.token(900 * MS, 0.70, 100 * MS)
    tracker.advance(1300 * MS)
    assert len(tracker.transitions) == 3
    tracker.advance(1300 * MS + 1)
    assert tracker.transitions[-1] == Transition(State.FLOWING, 1300 * MS + 1)


def test_surge_comes_between_tokens_while_decay_leaves_enough() -> None:
    tracker = charging()
    tracker.token(0, 1.0, 0)
    tracker.token(399 * MS, 1.0, 399 * MS)
    # decay begins at 799 ms; 1 ms of it leaves 0.999
    tracker.advance(5000 * MS)
    assert tracker.transitions[2] == Transition(State.SATURATED, 800 * MS)


def test_no_surge_when_decay_came_before() -> None:
    tracker = charging()
    tracker.token(0, 0.85, 0)
    tracker.token(399 * MS, 0.85, 399 * MS)
    tracker.advance(5000 * MS)
    assert [each.state for each in tracker.transitions[2:]] == [State.STALLING]


def test_a_dip_between_tokens_starts_the_count_anew() -> None:
    tracker = charging()
    tracker.token(0, 0.86, 0)
    tracker.token(700 * MS, 0.86, 700 * MS)  # in between it fell to 0.64
    tracker.token(900 * MS, 0.86, 200 * MS)
    assert tracker.state is State.FLOWING
    tracker.token(1100 * MS, 0.86, 200 * MS)
    tracker.token(1300 * MS, 0.86, 200 * MS)
    tracker.advance(1600 * MS)
    assert tracker.transitions[-1] == Transition(State.SATURATED, 1500 * MS)


def test_a_low_token_starts_the_count_anew() -> None:
    tracker = charging()
    for at_ms, energy in [(0, 0.9), (300, 0.9), (600, 0.84), (700, 0.9), (1000, 0.9), (1300, 0.9)]:
        tracker.token(at_ms * MS, energy, 100 * MS)
    tracker.advance(1500 * MS)
    assert tracker.transitions[2:] == [Transition(State.SATURATED, 1500 * MS)]


def test_ebb_between_tokens_is_where_decay_crosses_0_7() -> None:
    tracker = saturated()
    tracker.token(1000 * MS, 0.8, 100 * MS)
    tracker.advance(1799 * MS)
    state, instant_ns = tracker.transitions[-1]
    assert state is State.FLOWING
    # 0.8 halves in 700 ms, beginning 400 ms after the token
    assert instant_ns == pytest.approx((1400 + 700 * math.log2(0.8 / 0.7)) * MS, abs=1)
    lag_ns = instant_ns - 1400 * MS
    assert decayed(0.8, lag_ns, 700 * MS) < LOW <= decayed(0.8, lag_ns - 1, 700 * MS)


def test_after_an_ebb_a_surge_takes_another_800_ms() -> None:
    tracker = saturated()
    tracker.token(1600 * MS, 0.9, 700 * MS)  # after the ebb, before the silence
    for at_ms in range(1800, 2400, 200):
        tracker.token(at_ms * MS, 0.9, 200 * MS)
    assert tracker.state is State.FLOWING
    tracker.token(2400 * MS, 0.9, 200 * MS)
    assert tracker.transitions[-1] == Transition(State.SATURATED, 2400 * MS)


def test_silence_is_twice_the_stall_limit() -> None:
    tracker = flowing()
    tracker.advance(800 * MS - 1)
    assert tracker.state is State.FLOWING
    tracker.advance(9999 * MS)
    assert tracker.transitions[-1] == Transition(State.STALLING, 800 * MS)


def test_two_late_tokens_in_a_row_are_a_stall() -> None:
    tracker = flowing()
    tracker.token(401 * MS, 0.8, 401 * MS)
    tracker.token(501 * MS, 0.8, 100 * MS)
    tracker.token(902 * MS, 0.8, 401 * MS)
    assert tracker.state is State.FLOWING
    tracker.token(1303 * MS, 0.8, 401 * MS)
    assert tracker.transitions[-1] == Transition(State.STALLING, 1303 * MS)
    tracker.token(1703 * MS, 0.8, 400 * MS)  # at the limit is in time
    assert tracker.transitions[-1] == Transition(State.FLOWING, 1703 * MS)


def test_silent_beats_ebb() -> None:
    """An E that ebbs in the very nanosecond in which silence begins: found by bisection."""
    low, high = 0.7, 1.0
    while True:
        energy = (low + high) / 2
        fall = fall_ns(energy, LOW, 700 * MS)
        if fall == 350 * MS:
            break
        low, high = (energy, high) if fall < 350 * MS else (low, energy)
    tracker = Recorded(profile_for("fnd-002/2", Tier.HIGH))  # stall 350 ms
    tracker.request(0)
    for at_ms in range(0, 1000, 100):
        tracker.token(at_ms * MS, energy, 100 * MS)
    assert tracker.state is State.SATURATED
    tracker.advance(2000 * MS)
    assert tracker.transitions[3:] == [Transition(State.STALLING, 1600 * MS)]


def test_late_beats_ebb() -> None:
    tracker = saturated()
    tracker.token(1301 * MS, 0.75, 401 * MS)
    tracker.token(1702 * MS, 0.60, 401 * MS)
    assert [each.state for each in tracker.transitions[3:]] == [State.STALLING]


def test_back_from_a_stall_a_high_energy_surges_at_once() -> None:
    tracker = charging()
    tracker.token(0, 0.5, 0)
    for at_ms in (401, 802, 1203):
        tracker.token(at_ms * MS, 1.0, 401 * MS)
    assert tracker.state is State.STALLING
    tracker.token(1300 * MS, 1.0, 97 * MS)  # high since 401 ms
    assert tracker.transitions[3:] == [(State.FLOWING, 1300 * MS), (State.SATURATED, 1300 * MS)]


def test_a_clock_that_steps_back_an_hour_neither_hastens_nor_delays_a_surge() -> None:
    tracker = charging()
    hour = 3600_000 * MS
    for at_ms in (0, 200, 400):
        tracker.token(hour + at_ms * MS, 0.9, 200 * MS)
    for at_ms in (400, 600):
        tracker.token(at_ms * MS, 0.9, 200 * MS)
    tracker.advance(800 * MS - 1)
    assert tracker.transitions[-1].state is State.FLOWING
    tracker.advance(800 * MS)
    assert tracker.state is State.SATURATED


def test_an_ended_session_stays_drained() -> None:
    tracker = flowing()
    tracker.end(50 * MS)
    tracker.token(60 * MS, 0.9, 60 * MS)
    tracker.end(70 * MS)
    assert tracker.transitions[2:] == [Transition(State.DRAINED, 50 * MS)]


# --- laws -------------------------------------------------------------------------------------------

high = st.floats(0.6, 1.0)
energies = st.one_of(high, high, st.floats(0.0, 1.0))
gaps = st.one_of(
    st.integers(0, 300), st.integers(0, 1500), st.sampled_from([0, 400, 405, 795, 800, 805])
)
tokens = st.lists(st.tuples(gaps, energies), max_size=25)


def run(
    rows: Iterable[tuple[int, float]], looks: Iterable[int] = (), step_ms: int = 1
) -> list[Transition]:
    """Tokens after these gaps (ms), an end 2 s after the last; `looks` are instants (ns) to advance."""
    tracker = Recorded(MID)
    tracker.request(0)
    now_ns, waiting = 0, sorted(looks)
    for number, (gap, energy) in enumerate(rows):
        gap_ns = gap // step_ms * step_ms * MS
        now_ns += gap_ns
        while waiting and waiting[0] <= now_ns:
            tracker.advance(waiting.pop(0))
        tracker.token(now_ns, energy, gap_ns if number else 0)
    now_ns += 2000 * MS
    for look in waiting:
        tracker.advance(min(look, now_ns))
    tracker.end(now_ns)
    return tracker.transitions


@given(tokens, st.lists(st.integers(0, 12_000 * MS), max_size=40))
def test_looking_at_any_instants_changes_nothing(
    rows: list[tuple[int, float]], looks: list[int]
) -> None:
    assert run(rows, looks) == run(rows)


@given(tokens)
def test_transitions_are_of_the_table_in_order_and_end_drained(
    rows: list[tuple[int, float]],
) -> None:
    transitions = run(rows)
    instants = [each.instant_ns for each in transitions]
    assert instants == sorted(instants)
    assert transitions[0] == (State.CHARGING, 0)
    assert transitions[-1].state is State.DRAINED
    for before, after in pairwise(transitions):
        assert after.state in TRANSITIONS[before.state].values()


def slow_run(rows: list[tuple[int, float]], step_ms: int) -> list[tuple[State, int]]:
    """The guards as they are worded, looked at on a grid of `step_ms`, where all tokens lie."""
    found = [(State.CHARGING, 0)]
    arrivals: dict[int, list[tuple[int, float]]] = {}
    at_ms = 0
    for number, (gap, energy) in enumerate(rows):
        gap = gap // step_ms * step_ms
        at_ms += gap
        arrivals.setdefault(at_ms, []).append((gap if number else 0, energy))
    last, energy, was_late = 0, 0.0, False
    high_since: int | None = None

    def go(signal: Signal, now: int) -> None:
        target = EXPECTED.get((found[-1][0], signal))
        if target:
            found.append((target, now))

    def watch(now: int) -> None:
        nonlocal high_since
        shown = energy * 2 ** (-max(0, now - last - 400) / 700)
        if found[-1][0] in (State.FLOWING, State.SATURATED) and now - last >= 800:
            go(Signal.SILENT, now)
        if shown < HIGH:
            high_since = None
        else:
            high_since = now if high_since is None else high_since
            if now - high_since >= 800:
                go(Signal.SURGE, now)
        if shown < LOW:
            go(Signal.EBB, now)

    for now in range(0, at_ms + 2000 + step_ms, step_ms):
        watch(now)
        for gap, after in arrivals.get(now, []):
            last, energy, late = now, after, gap > 400
            go(Signal.TOKEN, now)
            go(Signal.LATE if late and was_late else Signal.TOKEN, now)
            go(Signal.TOKEN if late else Signal.IN_TIME, now)
            was_late = late
            watch(now)
    go(Signal.ENDED, at_ms + 2000)
    return found


@given(tokens)
@example([(0, 1.0)] + [(300, 1.0)] * 4 + [(700, 0.9), (100, 0.9)])
def test_the_guards_against_a_slow_simulation(rows: list[tuple[int, float]]) -> None:
    """Seen from a grid of 5 ms, the instants are those of the next look."""
    quick = [(state, -(-ns // (5 * MS)) * 5) for state, ns in run(rows, step_ms=5)]
    assert quick == slow_run(rows, 5)


def test_a_real_stream_of_tokens_saturates_and_ebbs() -> None:
    mapper, tracker = EUMapper(MID), Recorded(MID)
    tracker.request(0)
    for number in range(120):
        now_ns = number * 30 * MS
        tracker.token(now_ns, mapper.token(now_ns, [-0.01]), mapper.delta_ns)
    tracker.end(6000 * MS)
    assert [each.state for each in tracker.transitions] == [
        State.CHARGING, State.FLOWING, State.SATURATED, State.FLOWING, State.STALLING, State.DRAINED,
    ]  # fmt: skip
    ebb_ns = tracker.transitions[3].instant_ns
    assert mapper.at(ebb_ns) < LOW <= mapper.at(ebb_ns - 1)


@given(st.floats(0.0, 1.0), st.floats(0.01, 1.0), st.integers(1, 10**10))
def test_fall_is_the_first_nanosecond_below(energy: float, level: float, half_life_ns: int) -> None:
    lag_ns = fall_ns(energy, level, half_life_ns)
    assert decayed(energy, lag_ns, half_life_ns) < level
    assert lag_ns == 0 or decayed(energy, lag_ns - 1, half_life_ns) >= level


def test_a_stream_that_was_cut_stalls_until_tokens_flow_again() -> None:
    tracker = Recorded(MID)
    tracker.request(0)
    tracker.token(10 * MS, 0.5, 0)
    tracker.cut(20 * MS)
    assert tracker.transitions[-1] == (State.STALLING, 20 * MS)
    tracker.token(5_000 * MS, 0.5, 4_990 * MS)  # the first after the seam comes late
    tracker.token(5_030 * MS, 0.5, 30 * MS)
    assert tracker.transitions[-1] == (State.FLOWING, 5_030 * MS)


def test_what_is_cut_before_its_first_token_goes_on_charging() -> None:
    tracker = Recorded(MID)
    tracker.request(0)
    tracker.cut(20 * MS)
    assert tracker.state is State.CHARGING
