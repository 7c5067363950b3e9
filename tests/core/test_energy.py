"""The laws of E(t) on any input, the formulas against a slow reading of them, and figures by hand.

Most laws hold to the last bit: sums and products of floats round monotonically, and the decay factors of
two different nanosecond counts differ by far more than the rounding of exp2. Where a test needs a
tolerance, it says why.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ollama_adapter.config import EnergyConfig, Tier
from ollama_adapter.core.energy import (
    DRAINED_BELOW,
    PROFILES,
    EnergyProfile,
    EUMapper,
    certainty,
    decayed,
    profile_for,
)
from ollama_adapter.errors import ConfigError

MS = 1_000_000  # in nanoseconds
NAN, INF = math.nan, math.inf
HOUR = 3600 * 1000 * MS
MID = profile_for("fnd-002/2", Tier.MID)


class Step(NamedTuple):
    """One token: the gap before it as the clock tells it, and its log probabilities."""

    gap_ns: int
    logprobs: list[float] | None


odd_gaps = st.sampled_from(
    [0, 1, -1, -MS, HOUR, -HOUR]
    + [limit * MS + off for limit in (350, 400, 500, 700, 800, 1000, 1500) for off in (-1, 0, 1)]
)
gaps = st.one_of(st.integers(0, 80 * MS), odd_gaps, st.integers(-2000 * MS, 3000 * MS))
odd_logprobs = st.sampled_from(
    [NAN, INF, -INF, 0.0, -0.0, 0.0005, 0.001, 0.0011, 5.0, 800.0, -745.0, -746.0, -1e308]
)
logprob = st.one_of(st.floats(-12.0, 0.0), odd_logprobs, st.floats())
clean_logprob = st.one_of(st.floats(-12.0, 0.0), st.sampled_from([0.0, -INF, -800.0]))
lists = st.one_of(
    st.none(), st.lists(logprob, max_size=6), st.lists(clean_logprob, min_size=1, max_size=5)
)
steps = st.builds(Step, gaps, lists)
streams = st.lists(steps, min_size=1, max_size=40)
profiles = st.sampled_from(list(PROFILES.values()))
clocks = st.integers(-HOUR, 10**6 * HOUR)


def feed(profile: EnergyProfile, stream: Sequence[Step], start_ns: int = 0) -> list[float]:
    mapper, now_ns, energies = EUMapper(profile), start_ns, []
    for step in stream:
        now_ns += step.gap_ns
        energies.append(mapper.token(now_ns, step.logprobs))
    return energies


# --- the formulas, read slowly ----------------------------------------------------------------------


def slow_certainty(logprobs: list[float] | None) -> float | None:
    if not logprobs or any(math.isnan(each) or each > 1e-3 for each in logprobs):
        return None
    p = [math.exp(min(each, 0.0)) for each in logprobs]
    if len(p) == 1:
        return p[0]
    whole = math.fsum(p)
    if whole == 0.0:
        return 0.0
    shares = [each / whole for each in p]
    entropy = -math.fsum(each * math.log(each) for each in shares if each > 0.0)
    return min(max(min(1.0, whole) * (1 - entropy / math.log(len(p))), 0.0), 1.0)


def slow_energies(profile: EnergyProfile, stream: Sequence[Step]) -> list[float]:
    """Every formula of docs/energy.md as it is written there, in milliseconds and floats."""
    times: list[float] = []
    energies: list[float] = []
    energy = time = 0.0
    sure: float | None = None
    sure_at = 0.0
    for number, step in enumerate(stream):
        gap = max(0, step.gap_ns) / MS if number else 0.0
        time += gap
        times.append(time)
        # gaps are whole nanoseconds: half of one keeps the sums of floats on the right side
        tps = sum(1 for each in times if each > time - 1000 + 0.5e-6)
        velocity = min(max(tps / profile.tps_max, 0.0), 1.0)
        beyond = (gap - profile.stall_ms) / (1500 - profile.stall_ms)
        flow = 1 - min(max(beyond, 0.0), 1.0)
        own = slow_certainty(step.logprobs)
        if own is not None:
            sure, sure_at = own, time
        if sure is not None and time - sure_at <= 1000 + 0.5e-6:
            base = 0.5 * velocity + 0.3 * sure + 0.2 * flow
        else:
            base = 0.7 * velocity + 0.3 * flow
        before = energy * 2 ** (-max(0.0, gap - profile.stall_ms) / 700)
        energy = profile.alpha * base + (1 - profile.alpha) * before
        energies.append(energy)
    return energies


@given(profiles, streams, clocks)
def test_energy_follows_the_formulas(
    profile: EnergyProfile, stream: list[Step], start_ns: int
) -> None:
    # The tolerance is that of the slow reading: it adds up hours in milliseconds, as floats.
    assert feed(profile, stream, start_ns) == pytest.approx(
        slow_energies(profile, stream), abs=1e-8
    )


@given(lists)
@example([0.0, -INF])
@example([-INF, -INF])
@example([-744.0, -745.0])
def test_certainty_follows_the_formula(logprobs: list[float] | None) -> None:
    # The entropy is summed in another order; for masses that are nearly no numbers it is less exact,
    # but then it is multiplied by such a mass.
    slow = slow_certainty(logprobs)
    assert certainty(logprobs) == (None if slow is None else pytest.approx(slow, abs=1e-12))


# --- laws -------------------------------------------------------------------------------------------


@given(profiles, streams, clocks, st.lists(st.integers(-2 * HOUR, 2 * HOUR), max_size=5))
def test_energy_is_finite_and_within_0_and_1(
    profile: EnergyProfile, stream: list[Step], start_ns: int, reads: list[int]
) -> None:
    mapper, now_ns = EUMapper(profile), start_ns
    for step in stream:
        now_ns += step.gap_ns
        assert 0.0 <= mapper.token(now_ns, step.logprobs) <= 1.0
        assert all(0.0 <= mapper.at(now_ns + read) <= 1.0 for read in reads)
        assert 0.0 <= mapper.velocity <= 1.0
        assert 0.0 <= mapper.flow <= 1.0
        assert mapper.certainty is None or 0.0 <= mapper.certainty <= 1.0
    mapper.end(now_ns + 1)
    assert all(0.0 <= mapper.at(now_ns + read) <= 1.0 for read in reads)


@given(st.lists(logprob, max_size=8))
@example([0.001] * 5)
@example([0.0, -40.0])
@example([-1e-16, -INF])
@example([-1.1, -1.1])  # whose entropy rounds to above ln 2
def test_certainty_is_missing_or_within_0_and_1(logprobs: list[float]) -> None:
    sure = certainty(logprobs)
    assert sure is None or 0.0 <= sure <= 1.0


def certain_terms(stream: Sequence[Step]) -> list[bool]:
    """For each token, whether a certainty counts: its own, or one at most 1 s old."""
    found, time, until = [], 0, -1
    for number, step in enumerate(stream):
        time += max(0, step.gap_ns) if number else 0
        if certainty(step.logprobs) is not None:
            until = time + 1000 * MS
        found.append(time <= until)
    return found


@given(profiles, st.lists(st.tuples(steps, st.one_of(st.just(0), gaps)), min_size=1, max_size=30))
def test_slower_never_raises_energy(profile: EnergyProfile, pairs: list[tuple[Step, int]]) -> None:
    """As long as the same tokens have a certainty: without one the weights are others, and v alone may
    be more than v and a small c together. To the last bit."""
    fast = [step for step, _ in pairs]
    slow = [Step(step.gap_ns + max(0, more), step.logprobs) for step, more in pairs]
    of_fast, of_slow = EUMapper(profile), EUMapper(profile)
    fast_ns = slow_ns = 0
    for one, other, same, as_same in zip(
        fast, slow, certain_terms(fast), certain_terms(slow), strict=True
    ):
        if same != as_same:
            break
        fast_ns += one.gap_ns
        slow_ns += other.gap_ns
        assert of_slow.token(slow_ns, other.logprobs) <= of_fast.token(fast_ns, one.logprobs)
        for lag_ns in (0, 450 * MS, 5000 * MS):
            assert of_slow.at(slow_ns + lag_ns) <= of_fast.at(fast_ns + lag_ns)
            assert of_slow.at(slow_ns + lag_ns + 1) <= of_fast.at(fast_ns + lag_ns)


probability = st.one_of(st.floats(-12.0, 0.0), st.sampled_from([-INF, 0.0]))


@given(
    profiles,
    st.lists(st.tuples(gaps, st.booleans(), probability, probability), min_size=1, max_size=30),
)
def test_surer_never_lowers_energy(
    profile: EnergyProfile, rows: list[tuple[int, bool, float, float]]
) -> None:
    """With certainties present at the same tokens. To the last bit."""
    less = [Step(gap, [min(one, other)] if has else None) for gap, has, one, other in rows]
    more = [Step(gap, [max(one, other)] if has else None) for gap, has, one, other in rows]
    for low, high in zip(feed(profile, less), feed(profile, more), strict=True):
        assert low <= high


# Between them a logarithm and its exponential make an error of |l| * 2**-53 per candidate.
CERTAINTY_TOLERANCE = 1e-13


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=6), st.data())
def test_mass_moved_to_a_more_probable_candidate_never_lowers_certainty(
    weights: list[float], data: st.DataObject
) -> None:
    whole = sum(weights) / data.draw(st.floats(0.05, 1.0), "mass")
    p = sorted((each / whole for each in weights), reverse=True)
    low = data.draw(st.integers(1, len(p) - 1), "from")
    high = data.draw(st.integers(0, low - 1), "to")
    moved = data.draw(st.floats(0.0, 1.0), "share") * p[low]
    before = certainty([math.log(each) for each in p])
    p[high] += moved
    p[low] -= moved
    after = certainty([math.log(each) if each > 0.0 else -INF for each in p])
    assert before is not None
    assert after is not None
    assert after >= before - CERTAINTY_TOLERANCE


@given(
    st.lists(st.floats(1e-6, 1.0), min_size=1, max_size=6),
    st.floats(0.01, 1.0),
    st.floats(0.0, 1.0),
)
def test_mass_from_outside_the_list_to_the_first_never_lowers_certainty(
    weights: list[float], mass: float, share: float
) -> None:
    p = sorted((each / sum(weights) * mass for each in weights), reverse=True)
    before = certainty([math.log(each) for each in p])
    p[0] += share * max(0.0, 1.0 - sum(p))
    after = certainty([math.log(each) for each in p])
    assert before is not None
    assert after is not None
    assert after >= before - CERTAINTY_TOLERANCE


@given(profiles, streams, st.lists(st.integers(0, 20_000 * MS), max_size=30), st.booleans())
def test_without_tokens_energy_falls_monotonically_to_0(
    profile: EnergyProfile, stream: list[Step], reads: list[int], ended: bool
) -> None:
    mapper, now_ns = EUMapper(profile), 0
    for step in stream:
        now_ns += step.gap_ns
        mapper.token(now_ns, step.logprobs)
    if ended:
        mapper.end(now_ns)
    seen = [mapper.at(now_ns + read) for read in sorted(reads)]
    assert seen == sorted(seen, reverse=True)
    # nine half-lives bring 1 to 1/512; one nanosecond more, below
    assert mapper.at(now_ns + (0 if ended else profile.stall_ms * MS) + 9 * 700 * MS + 1) == 0.0


@given(profiles, streams, gaps, lists)
def test_a_token_after_a_gap_adds_to_what_decay_left(
    profile: EnergyProfile, stream: list[Step], gap_ns: int, logprobs: list[float] | None
) -> None:
    mapper, now_ns = EUMapper(profile), 0
    for step in stream:
        now_ns += step.gap_ns
        mapper.token(now_ns, step.logprobs)
    now_ns += gap_ns
    left = decayed(mapper.energy, gap_ns - profile.stall_ms * MS, 700 * MS)
    assert mapper.at(now_ns) == (left if left >= DRAINED_BELOW else 0.0)
    energy = mapper.token(now_ns, logprobs)
    base = 0.7 * mapper.velocity + 0.3 * mapper.flow
    if certain_terms([*stream, Step(gap_ns, logprobs)])[-1]:
        base = 0.5 * mapper.velocity + 0.3 + 0.2 * mapper.flow  # at most
    if mapper.certainty is not None:
        base = 0.5 * mapper.velocity + 0.3 * mapper.certainty + 0.2 * mapper.flow
    assert energy <= profile.alpha * base + (1 - profile.alpha) * left
    assert energy >= (1 - profile.alpha) * left


@given(profiles, streams)
def test_fast_and_sure_for_long_drives_energy_to_1(
    profile: EnergyProfile, stream: list[Step]
) -> None:
    mapper, now_ns = EUMapper(profile), 0
    for step in stream:
        now_ns += step.gap_ns
        mapper.token(now_ns, step.logprobs)
    for _ in range(4 * int(profile.tps_max)):
        now_ns += int(1000 / profile.tps_max * MS)
        mapper.token(now_ns, [0.0, -INF])
    assert 0.999 < mapper.energy <= 1.0


@given(profiles, clocks)
def test_without_certainty_fast_alone_drives_energy_to_1(
    profile: EnergyProfile, now_ns: int
) -> None:
    mapper = EUMapper(profile)
    for _ in range(4 * int(profile.tps_max)):
        now_ns += int(1000 / profile.tps_max * MS)
        mapper.token(now_ns)
    assert 0.999 < mapper.energy <= 1.0


@given(profiles, streams, clocks, st.lists(st.integers(-HOUR, HOUR), max_size=3))
def test_same_input_gives_the_same_output_to_the_last_bit(
    profile: EnergyProfile, stream: list[Step], start_ns: int, reads: list[int]
) -> None:
    """Neither an earlier run, nor where the clock began, nor reading in between makes a difference."""
    mapper, now_ns, energies = EUMapper(profile), start_ns, []
    for step in stream:
        now_ns += step.gap_ns
        energies.append(mapper.token(now_ns, step.logprobs))
        for read in reads:
            mapper.at(now_ns + read)
    assert energies == feed(profile, stream, start_ns) == feed(profile, stream, start_ns + 7 * HOUR)


@given(profiles, streams)
def test_a_clock_that_steps_back_counts_as_one_that_stands_still(
    profile: EnergyProfile, stream: list[Step]
) -> None:
    still = [Step(max(0, step.gap_ns), step.logprobs) for step in stream]
    assert feed(profile, stream) == feed(profile, still)


def test_a_clock_that_stands_still_makes_every_token_count_in_one_second() -> None:
    mapper = EUMapper(MID)
    for count in range(1, 200):
        assert mapper.token(42) <= 1.0
        assert mapper.tps == count


# --- by hand ----------------------------------------------------------------------------------------


def test_the_profiles_have_the_published_figures() -> None:
    figures = {
        (name, tier): (each.tps_max, each.stall_ms, each.alpha)
        for (name, tier), each in PROFILES.items()
    }
    assert figures == {
        ("fnd-002/1", Tier.LOW): (10, 500, 0.30),
        ("fnd-002/1", Tier.MID): (14, 400, 0.35),
        ("fnd-002/1", Tier.HIGH): (20, 350, 0.40),
        ("fnd-002/2", Tier.LOW): (15, 500, 0.30),
        ("fnd-002/2", Tier.MID): (30, 400, 0.35),
        ("fnd-002/2", Tier.HIGH): (60, 350, 0.40),
    }
    for (name, tier), each in PROFILES.items():
        assert (each.name, each.tier) == (name, tier)
        assert (each.ceil_ms, each.half_life_ms, each.reuse_ms) == (1500, 700, 1000)
        assert each.candidates == 5


def test_the_default_profile_is_that_of_the_settings() -> None:
    assert profile_for() is profile_for(EnergyConfig().profile, EnergyConfig().tier)


@pytest.mark.parametrize(("name", "tier"), [("fnd-002/3", Tier.MID), ("fnd-002/2", "huge")])
def test_an_unknown_profile_is_an_error_that_names_the_known(name: str, tier: Tier) -> None:
    with pytest.raises(ConfigError) as caught:
        profile_for(name, tier)
    assert repr(str(name)) in str(caught.value)
    assert repr(str(tier)) in str(caught.value)
    assert caught.value.hint == "profiles: fnd-002/1, fnd-002/2; tiers: low, mid, high"


def test_before_the_first_token_there_is_nothing() -> None:
    mapper = EUMapper(MID)
    assert mapper.profile is MID
    assert (mapper.energy, mapper.at(0), mapper.velocity) == (0.0, 0.0, 0.0)
    assert (mapper.tps, mapper.delta_ns, mapper.stall_ns) == (0, 0, 0)
    assert (mapper.flow, mapper.certainty) == (1.0, None)


def test_a_first_token_by_hand() -> None:
    mapper = EUMapper(MID)
    # v = 1/30, c = 1, f = 1: 0.35 * (0.5/30 + 0.3 + 0.2)
    assert mapper.token(5 * HOUR, [0.0]) == pytest.approx(0.18083333333)
    assert (mapper.delta_ns, mapper.tps, mapper.stall_ns) == (0, 1, 0)
    assert (mapper.velocity, mapper.flow, mapper.certainty) == (1 / 30, 1.0, 1.0)


def test_a_second_token_by_hand() -> None:
    mapper = EUMapper(MID)
    mapper.token(0, [0.0])
    # the gap of 950 ms is 550 beyond the stall, half-way to 1500: f = 0.5; v = 2/30, c = 0.5
    energy = mapper.token(950 * MS, [math.log(0.5)])
    before = 0.18083333333 * 2 ** (-550 / 700)
    assert energy == pytest.approx(0.35 * (1 / 30 + 0.15 + 0.1) + 0.65 * before)
    assert (mapper.delta_ns, mapper.stall_ns, mapper.flow) == (950 * MS, 550 * MS, 0.5)


def test_the_window_keeps_little_of_what_has_left_it() -> None:
    mapper = EUMapper(profile_for())
    for step in range(5000):
        mapper.token(step * MS)
        assert mapper.tps == min(step + 1, 1000)
        assert len(mapper._window) <= 4 * mapper.tps / 3


def test_the_window_is_open_at_its_start() -> None:
    mapper = EUMapper(MID)
    for stamp, tps in [
        (0, 1),
        (1000 * MS - 1, 2),
        (1000 * MS, 2),
        (2000 * MS - 1, 2),
        (2000 * MS, 2),
    ]:
        mapper.token(stamp)
        assert mapper.tps == tps


@pytest.mark.parametrize(
    ("gap_ms", "flow"), [(400, 1.0), (675, 0.75), (1500, 0.0), (1501, 0.0), (10**7, 0.0)]
)
def test_flow(gap_ms: int, flow: float) -> None:
    mapper = EUMapper(MID)
    mapper.token(0)
    mapper.token(gap_ms * MS)
    assert mapper.flow == flow


def test_a_certainty_serves_for_one_second_and_is_shown_as_absent() -> None:
    def third(gap_ns: int) -> tuple[float, float]:
        mapper = EUMapper(MID)
        mapper.token(0, [0.0])
        mapper.token(500 * MS, [NAN])  # missing: it neither serves nor renews
        before = decayed(mapper.energy, gap_ns - 400 * MS, 700 * MS)
        energy = mapper.token(500 * MS + gap_ns)
        assert mapper.certainty is None
        return (energy - 0.65 * before) / 0.35, mapper.flow

    base, flow = third(500 * MS)
    assert base == pytest.approx(0.5 * 2 / 30 + 0.3 * 1.0 + 0.2 * flow)
    base, flow = third(500 * MS + 1)
    assert base == pytest.approx(0.7 * 2 / 30 + 0.3 * flow)


def test_a_session_that_never_had_a_certainty_uses_two_terms() -> None:
    assert EUMapper(MID).token(0) == pytest.approx(0.35 * (0.7 / 30 + 0.3))


def test_decay_between_tokens_by_hand() -> None:
    mapper = EUMapper(MID)
    energy = mapper.token(0, [0.0])
    assert mapper.at(-1) == mapper.at(0) == mapper.at(400 * MS) == energy
    assert mapper.at(1100 * MS) == energy / 2
    assert mapper.at(1800 * MS) == energy / 4
    assert mapper.at(400 * MS + 1) < energy


def test_after_the_end_decay_starts_at_once() -> None:
    mapper = EUMapper(MID)
    energy = mapper.token(0, [0.0])
    mapper.end(100 * MS)
    assert mapper.at(100 * MS) == energy
    assert mapper.at(800 * MS) == energy / 2


def test_an_end_during_a_stall_goes_on_from_what_is_left() -> None:
    mapper = EUMapper(MID)
    energy = mapper.token(0, [0.0])
    mapper.end(1100 * MS)
    assert mapper.at(1100 * MS) == energy / 2
    assert mapper.at(1800 * MS) == energy / 4


def test_drained_means_below_1_in_512() -> None:
    mapper = EUMapper(MID)
    mapper.energy = 1.0
    mapper.end(0)
    assert mapper.at(9 * 700 * MS) == 1 / 512
    assert mapper.at(9 * 700 * MS + 1) == 0.0


@pytest.mark.parametrize(
    ("p", "sure"),
    [
        ([], None),
        ([1.0], 1.0),
        ([0.25], 0.25),
        ([0.5, 0.5], 0.0),
        ([1.0, 0.0], 1.0),
        ([0.0], 0.0),
        ([0.0, 0.0], 0.0),
        ([0.9, 0.1], 0.5310044064),  # 1 - 0.4689955936 bits
        ([0.45, 0.05], 0.2655022032),  # the same shares, half the mass
        ([0.5, 0.5, 0.0, 0.0], 0.5),  # zeros count in K: 1 - 1/2
        ([0.5, 0.25, 0.25, 0.0], 0.25),  # 1 - 1.5/2
        ([0.001] * 5, 0.0),  # WF-FND-002 reads 98 % here
        ([1.0, 1.0], 0.0),  # a duplicate: the mass is cut at 1
    ],
)
def test_certainty_by_hand(p: list[float], sure: float | None) -> None:
    found = certainty([math.log(each) if each else -INF for each in p])
    assert found == (None if sure is None else pytest.approx(sure, abs=1e-10))


@pytest.mark.parametrize("bad", [NAN, INF, 0.0011, 800.0])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_number_makes_the_certainty_missing(bad: float, place: int) -> None:
    logprobs = [-0.1, -3.0]
    logprobs.insert(place, bad)
    assert certainty(logprobs) is None
    assert certainty([bad]) is None


def test_a_little_above_0_is_rounding() -> None:
    assert certainty([0.001]) == 1.0
    assert certainty([0.001, -INF]) == 1.0
    assert certainty(None) is None


def test_the_page_lists_the_profiles_as_they_are() -> None:
    page = (Path(__file__).parents[2] / "docs" / "energy.md").read_text()
    rows = re.findall(r"^\| `([^`]+)` \| (\w+) \| (\d+) \| (\d+) \| ([\d.]+) \|$", page, re.M)
    assert [
        (name, tier, float(tps), int(stall), float(alpha)) for name, tier, tps, stall, alpha in rows
    ] == [
        (each.name, each.tier, each.tps_max, each.stall_ms, each.alpha)
        for each in PROFILES.values()
    ]
