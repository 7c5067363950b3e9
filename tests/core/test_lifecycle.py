"""The table of the daemon's life."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.core.lifecycle import (
    TRANSITIONS,
    DaemonState,
    IllegalTransition,
    Signal,
    advance,
)

PAIRS = list(itertools.product(DaemonState, Signal))


@pytest.mark.parametrize(("state", "signal"), PAIRS)
def test_a_signal_leads_where_the_table_says_and_is_an_error_elsewhere(
    state: DaemonState, signal: Signal
) -> None:
    if signal in TRANSITIONS[state]:
        assert advance(state, signal) is TRANSITIONS[state][signal]
    else:
        with pytest.raises(IllegalTransition, match=f"{signal} while {state}"):
            advance(state, signal)


def test_every_state_is_reached_and_left() -> None:
    assert set(TRANSITIONS) == set(DaemonState)
    reached = {DaemonState.STOPPED}
    while new := {to for each in reached for to in TRANSITIONS[each].values()} - reached:
        reached |= new
    assert reached == set(DaemonState)
    for state in DaemonState:
        assert set(TRANSITIONS[state].values()) - {state}, f"{state} is a trap"


@given(st.lists(st.sampled_from(Signal)))
def test_stop_is_heard_in_every_state_and_ends_in_stopped(signals: list[Signal]) -> None:
    state = DaemonState.STOPPED
    for each in signals:
        if each in TRANSITIONS[state]:
            state = advance(state, each)
    state = advance(state, Signal.STOP)
    assert state in (DaemonState.STOPPED, DaemonState.STOPPING)
    if state is DaemonState.STOPPING:
        assert advance(state, Signal.ENDED) is DaemonState.STOPPED


def test_only_a_probe_makes_ready() -> None:
    """Ready means HTTP 200 on /api/version, nothing less."""
    for state, signal in PAIRS:
        if TRANSITIONS[state].get(signal) is DaemonState.READY:
            assert signal is Signal.PROBE_OK


def test_a_daemon_that_stops_is_not_made_ready_by_a_late_probe() -> None:
    assert Signal.PROBE_OK not in TRANSITIONS[DaemonState.STOPPING]


def test_the_diagram_in_the_documentation_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text("utf-8")
    drawn = set(re.findall(r"^    (\w+) --> (\w+): (.+)$", page, re.MULTILINE))
    table = {
        (state.value.replace(" ", "_"), to.value.replace(" ", "_"), signal.value)
        for state, row in TRANSITIONS.items()
        for signal, to in row.items()
        if to is not state
    }
    assert drawn == table
