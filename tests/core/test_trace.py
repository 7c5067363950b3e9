"""A trace replays to the same energies and frames, to the last bit, and holds no text unasked."""

from __future__ import annotations

import json
import math
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import Tier
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.core.frames import FrameComposer, next_tick, tick_instant
from ollama_adapter.core.trace import TraceRecorder, entropy, replay
from ollama_adapter.errors import ConfigError
from ollama_adapter.events import Candidate, Frame, TokenEvent

MS = 1_000_000  # in nanoseconds
NAN, INF = math.nan, math.inf
SECOND = 1000 * MS


class Token(NamedTuple):
    gap_ns: int
    logprobs: list[float] | None


class Plan(NamedTuple):
    """One session: when it is requested, its tokens, and how long after the last it ends."""

    request_ns: int
    tokens: list[Token]
    end_ns: int
    weight: float


class Recorded(NamedTuple):
    frames: list[Frame]
    energies: dict[str, list[float]]
    traces: list[dict[str, Any]]


gaps = st.one_of(st.integers(0, 60 * MS), st.integers(0, 2 * SECOND))
logprob = st.one_of(st.floats(-9.0, 0.0), st.sampled_from([NAN, INF, -INF, 0.0, 0.001, 0.002]))
tokens = st.builds(Token, gaps, st.one_of(st.none(), st.lists(logprob, max_size=5)))
plans = st.lists(
    st.builds(
        Plan,
        st.integers(0, 20 * SECOND),
        st.lists(tokens, max_size=20),
        st.integers(0, SECOND),
        st.floats(0.0, 3.0),
    ),
    min_size=1,
    max_size=3,
    unique_by=lambda plan: plan.request_ns,  # which says in what order they were opened
)


class Live:
    """One session as the adapter runs it: mapper, recorder and composer side by side."""

    def __init__(self, name: str, plan: Plan, *, text: bool = False) -> None:
        self.name, self.plan, self.text = name, plan, text
        self.mapper = EUMapper(profile_for("fnd-002/1", Tier.LOW))
        self.energies: list[float] = []
        self.recorder: TraceRecorder | None = None
        self.waiting = list(plan.tokens)
        self.now_ns = plan.request_ns
        self.over = False

    def advance(self, composer: FrameComposer, until_ns: int) -> None:
        """Everything of this session up to `until_ns`."""
        if self.recorder is None and self.plan.request_ns <= until_ns:
            self.recorder = TraceRecorder(
                self.name, "m", self.mapper, composer, self.plan.request_ns,
                weight=self.plan.weight, text=self.text,
            )  # fmt: skip
            composer.open(self.name, self.mapper, self.plan.request_ns, self.plan.weight)
        while self.waiting and self.now_ns + self.waiting[0].gap_ns <= until_ns:
            self._token(composer, self.waiting.pop(0))
        if not self.waiting and not self.over and self.now_ns + self.plan.end_ns <= until_ns:
            assert self.recorder is not None
            self.over = True
            self.mapper.end(self.now_ns + self.plan.end_ns)
            self.recorder.end(self.now_ns + self.plan.end_ns)
            composer.end(self.name, self.now_ns + self.plan.end_ns)

    def _token(self, composer: FrameComposer, token: Token) -> None:
        assert self.recorder is not None
        self.now_ns += token.gap_ns
        energy = self.mapper.token(self.now_ns, token.logprobs)
        logprobs = token.logprobs or []
        event = TokenEvent(
            "canary",
            0,
            0,
            self.name,
            "m",
            token.logprobs,
            energy,
            index=len(self.energies),
            candidates=[Candidate(f"canary{number}", each) for number, each in enumerate(logprobs)],
            arrival_ns=self.now_ns,
        )
        self.energies.append(energy)
        self.recorder.token(event, token.logprobs)
        composer.ingest(event)


def record(
    sessions: list[Plan], hops: list[int], *, text: bool = False, ticks: int = 10**6
) -> Recorded:
    """Runs them on a grid; after each frame the ticker is late by the next of `hops`. It sleeps
    while nothing is active."""
    composer = FrameComposer(total_energy=0.1)
    frames: list[Frame] = []
    live = [Live(f"s{number}", plan, text=text) for number, plan in enumerate(sessions)]
    live.sort(key=lambda each: each.plan.request_ns)
    tick, late = 0, 0
    while ticks and (composer.active or not all(each.over for each in live)):
        ticks -= 1
        tick = next_tick(0, tick_instant(0, tick, 60) + late, 60, tick)
        if not composer.active:  # asleep until the next request
            wake_ns = min((each.plan.request_ns for each in live if not each.recorder), default=0)
            tick = max(tick, next_tick(0, wake_ns, 60, 0))
        now_ns = tick_instant(0, tick, 60) + late // 1000
        late = hops[len(frames) % len(hops)] if hops else 0
        for each in live:
            each.advance(composer, now_ns)
        frame = composer.compose(
            tick, now_ns, 7 * tick, queue_depth=tick % 3, processing_ns=late // 1000
        )
        frames.append(frame)
        for each in live:
            if each.recorder:
                each.recorder.frame(frame)
    documents = [each.recorder.document() for each in live if each.recorder]
    return Recorded(frames, {each.name: each.energies for each in live if each.recorder}, documents)


hops = st.lists(st.integers(0, 3 * SECOND), max_size=10)


@given(plans, hops, st.booleans())
def test_a_replay_gives_the_same_energies_and_frames_to_the_last_bit(
    sessions: list[Plan], late: list[int], text: bool
) -> None:
    recorded = record(sessions, late, text=text)
    # allow_nan=False: it is JSON that any reader reads
    through_json = [json.loads(json.dumps(each, allow_nan=False)) for each in recorded.traces]
    replayed = replay(*reversed(through_json))
    assert replayed.energies == recorded.energies
    assert replayed.frames == recorded.frames
    assert [list(each.sessions) for each in replayed.frames] == [
        list(each.sessions) for each in recorded.frames
    ]


@given(plans, hops, st.integers(1, 60))
def test_a_trace_that_was_cut_short_replays_what_it_has(
    sessions: list[Plan], late: list[int], ticks: int
) -> None:
    recorded = record(sessions, late, ticks=ticks)
    replayed = replay(*recorded.traces)
    assert replayed.energies == recorded.energies
    assert replayed.frames == recorded.frames


@given(plans, hops)
def test_no_text_unless_asked_for(sessions: list[Plan], late: list[int]) -> None:
    recorded = record(sessions, late)
    assert "canary" not in json.dumps(recorded.traces)


def one(*tokens: Token, text: bool = False) -> dict[str, Any]:
    return record([Plan(SECOND, list(tokens), 0, 1.0)], [], text=text).traces[0]


def test_a_trace_by_hand() -> None:
    trace = one(Token(0, [math.log(0.5), -INF]), Token(950 * MS, None), Token(0, [NAN, -0.1]))
    assert trace["session_id"] == "s0"
    (model,) = trace["models"]
    assert (model["name"], model["backend"]) == ("m", "ollama")
    energies = [each.pop("E") for each in model["tokens"]]
    assert energies[0] == pytest.approx(0.30 * (0.5 / 10 + 0.3 * 0.5 + 0.2))
    assert model["tokens"] == [
        {
            "t_ms": 0.0,
            "delta_ms": 0.0,
            "tps": 1,
            "topk": [{"lp": math.log(0.5)}, {"lp": None}],
            "entropy": 0.0,
            "certainty": 0.5,
            "stall": False,
            "t_ns": SECOND,
            "index": 0,
            "frame": 60,
        },
        {
            "t_ms": 950.0,
            "delta_ms": 950.0,
            "tps": 2,
            "stall": True,
            "t_ns": 1950 * MS,
            "index": 1,
            "frame": 117,
        },
        {
            "t_ms": 950.0,
            "delta_ms": 0.0,
            "tps": 3,
            "stall": False,
            "t_ns": 1950 * MS,
            "index": 2,
            "frame": 117,
        },
    ]
    meta = trace["meta"]
    ticks = meta.pop("frames")
    assert ticks[0] == [60, SECOND, 420, 0, 0]
    assert [each[0] for each in ticks] == list(range(60, 60 + len(ticks)))
    assert meta == {
        "wvmp": "0.1",
        "profile": "fnd-002/1",
        "tier": "low",
        "weight": 1.0,
        "request_ns": SECOND,
        "total_energy": 0.1,
        "tick": None,
        "end_ns": 1950 * MS,
        "end_frame": 117,
    }


def test_a_trace_continues_the_account_it_was_taken_from() -> None:
    composer, mapper = FrameComposer(), EUMapper(profile_for())
    composer.open("other", EUMapper(profile_for()), 0)
    composer.ingest(TokenEvent("x", 0, 0, "other", "m", energy=0.5))
    composer.compose(1, 16 * MS, 0)
    recorder = TraceRecorder("a", "m", mapper, composer, 20 * MS)
    composer.open("a", mapper, 20 * MS)
    frame = composer.compose(5, 83 * MS, 0)
    recorder.frame(frame)
    (replayed,) = replay(recorder.document()).frames
    assert replayed.skipped == frame.skipped == 3
    assert replayed.total_energy == frame.total_energy == 0.5


def test_text_when_asked_for_by_name() -> None:
    (token,) = one(Token(0, [-0.5, -1.5]), text=True)["models"][0]["tokens"]
    assert token["token"] == "canary"
    assert token["topk"] == [{"lp": -0.5, "t": "canary0"}, {"lp": -1.5, "t": "canary1"}]


def test_candidates_of_another_number_are_not_guessed() -> None:
    composer, mapper = FrameComposer(), EUMapper(profile_for())
    recorder = TraceRecorder("a", "m", mapper, composer, 0, text=True)
    mapper.token(0, [-0.5])
    event = TokenEvent("x", 0, 0, "a", "m", candidates=[Candidate("a", 0.0), Candidate("b", -1.0)])
    recorder.token(event, [-0.5])
    assert recorder.document()["models"][0]["tokens"][0]["topk"] == [{"lp": -0.5}]


@pytest.mark.parametrize(
    ("logprobs", "nats"),
    [
        ([-3.0], 0.0),
        ([0.0, 0.0005], math.log(2)),
        ([math.log(0.45), math.log(0.05)], 0.3250829734),
        ([-INF, -INF], None),
        ([0.0, -INF], 0.0),
        ([0.0, -740.0], 0.0),
    ],
)
def test_entropy_by_hand(logprobs: list[float], nats: float | None) -> None:
    assert entropy(logprobs) == (None if nats is None else pytest.approx(nats, abs=1e-10))


@given(st.lists(st.one_of(st.floats(-800.0, 0.0), st.just(-INF)), min_size=1, max_size=8))
def test_entropy_is_at_most_that_of_equals(logprobs: list[float]) -> None:
    found = entropy(logprobs)
    assert found is None or 0.0 <= found <= math.log(len(logprobs)) + 1e-12


def test_nothing_replays_to_nothing() -> None:
    assert replay() == ({}, [])


@pytest.mark.parametrize(
    ("change", "word"),
    [({"models": 3}, "models"), ({"meta": {}}, "meta"), ({"session_id": None}, "session_id")],
)
def test_what_is_not_a_trace_is_an_error(change: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        replay({**one(Token(0, None)), **change})


def test_a_trace_of_an_unknown_profile_is_an_error() -> None:
    trace = one(Token(0, None))
    trace["meta"]["profile"] = "fnd-009/1"
    with pytest.raises(ConfigError, match="fnd-009/1"):
        replay(trace)
