"""Tokens of one read share an instant: counting them together is counting them one by one."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.frames import FrameComposer
from ollama_adapter.events import TokenEvent
from tests.recorded import Recorded

MS = 1_000_000  # in nanoseconds
MID = profile_for("fnd-002/2", Tier.MID)
GAPS = st.sampled_from([-50, 0, 1, 100, 400, 401, 700, 800, 900, 1500])
ENERGIES = st.lists(st.sampled_from([0.0, 0.5, 0.69, 0.7, 0.84, 0.85, 0.9, 1.0]), min_size=1)
LOGPROBS = st.none() | st.lists(st.floats(-5.0, 0.01) | st.just(math.nan), max_size=3)
READS = st.lists(st.tuples(GAPS, ENERGIES, st.booleans()))


@given(READS)
def test_the_state_is_the_same(reads: list[tuple[int, list[float], bool]]) -> None:
    single, together, now_ns = Recorded(MID), Recorded(MID), 0
    for state in (single, together):
        state.request(now_ns)
    for gap_ms, energies, looked in reads:
        now_ns += gap_ms * MS
        for index, energy in enumerate(energies):
            single.token(now_ns, energy, 0 if index else max(0, gap_ms * MS))
        together.token(now_ns, energies[0], max(0, gap_ms * MS))
        if energies[1:]:
            together.tokens_at_once(energies[1:])
        if looked:
            now_ns += 450 * MS
            single.advance(now_ns)
            together.advance(now_ns)
        assert together.transitions == single.transitions


@given(st.lists(st.tuples(GAPS, st.lists(LOGPROBS, min_size=1))))
def test_the_energy_is_the_same_to_the_last_bit(
    reads: list[tuple[int, list[list[float] | None]]],
) -> None:
    single, together, now_ns = EUMapper(MID), EUMapper(MID), 0
    for gap_ms, read in reads:
        now_ns += gap_ms * MS
        assert together.tokens(now_ns, read) == [single.token(now_ns, each) for each in read]
        assert together.__getstate__() == single.__getstate__()


@given(READS)
def test_the_frames_are_the_same(reads: list[tuple[int, list[float], bool]]) -> None:
    single, together, now_ns, index = FrameComposer(), FrameComposer(), 0, 0
    for tick, (gap_ms, energies, opened) in enumerate(reads):
        now_ns += abs(gap_ms) * MS
        for composer in (single, together) if opened else ():
            composer.open("a", EUMapper(MID), now_ns)
        events = [
            TokenEvent("x", 0, 0, "a", "m", energy=energy, index=index + n, arrival_ns=now_ns)
            for n, energy in enumerate(energies)
        ]
        index += len(events)
        for event in events:
            single.ingest(event)
        together.ingest_read(events)
        one, all_ = single.compose(tick, now_ns, 0), together.compose(tick, now_ns, 0)
        assert all_.sessions == one.sessions
        assert math.isclose(all_.total_energy, one.total_energy)
        assert math.isclose(all_.energy_rate, one.energy_rate)
