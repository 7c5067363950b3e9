"""What an abort may claim, and what it may do."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ollama_adapter.config import Rung
from ollama_adapter.core.aborts import STILL_SAMPLES, Doubt, Rest, Seen, doubt, phase_of, refusal
from ollama_adapter.events import Phase

OURS = Seen(ours=True, visible=True, runners=1, found=True, identified=True, sharing=0, others=0)
ADOPTED = replace(OURS, ours=False)
SEEN = st.builds(
    Seen,
    ours=st.booleans(),
    visible=st.booleans(),
    runners=st.integers(0, 3),
    found=st.booleans(),
    identified=st.booleans(),
    sharing=st.integers(0, 2),
    others=st.integers(0, 2),
)


@pytest.mark.parametrize(
    ("seen", "phase"),
    [
        ({}, Phase.DECODING),
        ({"ahead": 1}, Phase.DECODING),
        ({"tokens": 0}, Phase.PROMPT_EVALUATION),
        ({"tokens": 0, "ahead": 1}, Phase.QUEUED),
        ({"tokens": 0, "sent": False}, Phase.LOADING),
        ({"tokens": 0, "sent": False, "ahead": 1}, Phase.LOADING),
        ({"tokens": 0, "sent": False, "started": False}, Phase.NOT_STARTED),
        ({"ended": True}, Phase.ENDED),
        ({"ended": True, "started": False}, Phase.ENDED),
    ],
)
def test_a_phase_is_how_far_it_has_come(seen: dict[str, Any], phase: Phase) -> None:
    well: dict[str, Any] = {
        "started": True,
        "ended": False,
        "sent": True,
        "tokens": 3,
        "ahead": 0,
    }
    assert phase_of(**(well | seen)) is phase


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (OURS, None),
        (ADOPTED, None),
        (replace(OURS, sharing=1), Doubt.SHARED),
        (replace(OURS, sharing=1, visible=False), Doubt.SHARED),
        (replace(OURS, visible=False, runners=0), Doubt.UNSEEN),
        (replace(OURS, runners=0, found=False), None),
        (replace(ADOPTED, runners=0, found=False), Doubt.NO_RUNNER),
        (replace(ADOPTED, runners=0), None),
        (replace(OURS, others=1), None),
        (replace(OURS, runners=2, identified=False), None),
        (replace(OURS, runners=2, identified=False, others=1), Doubt.MINGLED),
    ],
)
def test_rest_is_claimed_only_where_it_can_be_told(seen: Seen, why: Doubt | None) -> None:
    assert doubt(seen) is why


@pytest.mark.parametrize(
    ("rung", "seen", "why"),
    [
        (Rung.UNLOAD, OURS, ""),
        (Rung.UNLOAD, ADOPTED, ""),
        (Rung.UNLOAD, replace(OURS, others=1), ""),
        (Rung.UNLOAD, replace(OURS, sharing=1), "hurt another session of this model"),
        (Rung.UNLOAD, replace(OURS, visible=False), "was not tried"),
        (Rung.UNLOAD, replace(ADOPTED, runners=0, found=False), "was not tried"),
        (Rung.UNLOAD, replace(OURS, identified=False, others=1), "was not tried"),
        (Rung.RESTART, OURS, ""),
        (Rung.RESTART, ADOPTED, "only for a daemon that is ours"),
        (Rung.RESTART, replace(OURS, sharing=1), "hurt another session of this model"),
        (Rung.RESTART, replace(OURS, others=1), ""),
        (Rung.RESTART, replace(OURS, others=1, identified=False), "of another model"),
        (Rung.RESTART, replace(OURS, identified=False), ""),
        (Rung.RESTART, replace(OURS, runners=0), "no process to end"),
    ],
)
def test_a_rung_is_climbed_or_it_is_said_why_not(rung: Rung, seen: Seen, why: str) -> None:
    assert (refusal(rung, seen) == "") == (why == "")
    assert why in refusal(rung, seen)


@given(SEEN, st.sampled_from(Rung))
def test_no_rung_ever_hurts_another_session_or_ends_what_is_not_ours(
    seen: Seen, rung: Rung
) -> None:
    if not refusal(rung, seen):
        assert not seen.sharing
        assert doubt(seen) is None, "it may be at rest"
        if rung is Rung.RESTART:
            assert seen.ours
            assert seen.identified or not seen.others


def feed(rest: Rest, *samples: tuple[dict[int, float], bool]) -> list[bool]:
    """One sample each 100 ns, from 100 on."""
    answers = []
    for place, (spent, runnable) in enumerate(samples, 1):
        rest.sample(place * 100, spent, runnable=runnable)
        answers.append(rest.still)
    return answers


def test_rest_is_two_samples_like_the_one_before_and_dates_from_that_one() -> None:
    rest = Rest()
    worked = [({1: 0.1}, False), ({1: 0.2}, False), ({1: 0.2}, False), ({1: 0.2}, False)]
    assert feed(rest, *worked) == [False, False, False, True]
    assert rest.since_ns == 200


def test_what_wants_the_cpu_and_does_not_get_it_is_not_at_rest() -> None:
    rest = Rest()
    assert not any(feed(rest, *[({1: 0.1}, True)] * 9))
    assert feed(rest, *[({1: 0.1}, False)] * 2) == [False, True]


@pytest.mark.parametrize("after", [{}, {2: 0.1}, {1: 0.1, 2: 0.0}])
def test_a_process_that_has_come_or_gone_begins_the_count_anew(after: dict[int, float]) -> None:
    rest = Rest()
    before, then = ({1: 0.1}, False), (after, False)
    assert feed(rest, before, before, then, then, then) == [False] * 4 + [True]
    assert rest.since_ns == 300


@given(st.lists(st.tuples(st.dictionaries(st.integers(1, 2), st.floats(0, 1)), st.booleans())))
def test_rest_is_never_claimed_over_work(samples: list[tuple[dict[int, float], bool]]) -> None:
    for place, still in enumerate(feed(Rest(), *samples)):
        if still:
            latest = samples[place - STILL_SAMPLES : place + 1]
            assert all(spent == latest[0][0] for spent, _ in latest)
            assert not any(runnable for _, runnable in latest[1:])
