"""From what was seen to why a stream stands still."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from ollama_adapter.core.diagnosis import Evidence, Stall, diagnose

WELL = Evidence(
    paused=False,
    answers=True,
    loading=False,
    tokens=0,
    others=0,
    runners=1,
    working=True,
    runnable=True,
)


@pytest.mark.parametrize(
    ("seen", "stall"),
    [
        ({"paused": True}, Stall.CONSUMER_PAUSED),
        ({"answers": False}, Stall.DAEMON_DEAD),
        ({"loading": True}, Stall.LOADING),
        ({"loading": True, "runners": 0}, Stall.LOADING),
        ({"others": 1}, Stall.QUEUED),
        ({"others": 1, "runners": None, "working": None}, Stall.QUEUED),
        ({"runners": None, "working": None}, Stall.UNKNOWN),
        ({"runners": None, "working": None, "tokens": 3, "others": 1}, Stall.UNKNOWN),
        ({"runners": 0, "working": False}, Stall.RUNNER_DEAD),
        ({"runners": 0, "working": False, "others": 1}, Stall.RUNNER_DEAD),
        ({}, Stall.EVALUATING),
        ({"working": False, "runnable": False}, Stall.RUNNER_HUNG),
        ({"working": False, "runnable": False, "tokens": 9}, Stall.RUNNER_HUNG),
        ({"working": False, "runnable": False, "tokens": 9, "others": 2}, Stall.RUNNER_HUNG),
        ({"working": False}, Stall.HOST_STARVED),
        ({"tokens": 9}, Stall.HOST_STARVED),
    ],
)
def test_what_is_seen_has_one_name(seen: dict[str, Any], stall: Stall) -> None:
    assert diagnose(replace(WELL, **seen)) is stall


@given(
    st.builds(
        Evidence,
        paused=st.booleans(),
        answers=st.booleans(),
        loading=st.booleans(),
        tokens=st.integers(0, 3),
        others=st.integers(0, 3),
        runners=st.none() | st.integers(0, 2),
        working=st.none() | st.booleans(),
        runnable=st.booleans(),
    )
)
def test_whatever_is_seen_there_is_an_answer_and_the_reader_is_asked_first(seen: Evidence) -> None:
    assert (diagnose(seen) is Stall.CONSUMER_PAUSED) == seen.paused
