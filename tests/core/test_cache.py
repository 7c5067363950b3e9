"""The laws of the cache of answers: its size, its order, its time, and what it never holds or shows."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ollama_adapter.core.cache import OVERHEAD_BYTES, AnswerCache, Cached, CachedToken, pack
from ollama_adapter.events import Candidate, Channel, Finish, Source, Statistics, TokenEvent

SECOND = 10**9
SECRET = bytes(range(32))
BODY: dict[str, Any] = {
    "model": "m",
    "prompt": "CANARY",
    "keep_alive": "5m",
    "truncate": False,
    "options": {"temperature": 0, "seed": 7},
}

events = st.builds(
    TokenEvent,
    token=st.text(st.sampled_from("aé日🙂\u2028\0"), max_size=4),
    timestamp_ms=st.just(1),
    delta_ms=st.just(1),
    session_id=st.just("s"),
    model=st.just("m"),
    channel=st.sampled_from(Channel),
    logprob=st.none() | st.floats(-50, 0) | st.just(-math.inf),
    candidates=st.none()
    | st.lists(st.builds(Candidate, st.text(max_size=3), st.floats(-50, 0)), max_size=3),
    tool_calls=st.none() | st.just([{"function": {"name": "f", "arguments": {"x": [1.5, None]}}}]),
    token_ids=st.none() | st.lists(st.integers(0, 1 << 31), max_size=3).map(tuple),
)


def event(text: str = "x", source: Source = Source.LIVE) -> TokenEvent:
    return TokenEvent(text, 1, 1, "s", "m", source=source)


def ended(finish: Finish | None = Finish.STOP) -> Statistics:
    return Statistics("s", "m", finish=finish, prompt_eval_count=5, eval_count=9)


def cache(max_bytes: int = 1 << 20, ttl_s: float = 60.0) -> AnswerCache:
    return AnswerCache(max_bytes, ttl_s, SECRET)


def key_of(
    held: AnswerCache, digest: str = "d", path: str = "/api/generate", **fields: Any
) -> bytes:
    return held.key(digest, path, json.dumps({**BODY, **fields}).encode())


def parts(*said: TokenEvent) -> list[bytes]:
    """As a draft has them when each read brought one token."""
    packed = [pack([each]) for each in said]
    assert None not in packed
    return [each for each in packed if each is not None]


def text_of(found: Cached | None) -> str | None:
    return None if found is None else "".join(each.token for each in found.tokens)


# What is given is what was put


@given(
    st.lists(st.lists(events, max_size=3), max_size=4),
    st.sampled_from([Finish.STOP, Finish.LENGTH]),
)
def test_an_answer_comes_back_as_it_was(reads: list[list[TokenEvent]], finish: Finish) -> None:
    held = cache()
    packed = [part for each in reads if (part := pack(each)) is not None]
    assert len(packed) == len(reads)
    assert held.put(b"k", packed, ended(finish), 0)
    said = [event for each in reads for event in each]
    found = held.get(b"k", 3 * SECOND)
    assert found is not None
    assert (found.finish, found.prompt_eval_count, found.eval_count) == (finish, 5, 9)
    assert found.age_ns == 3 * SECOND
    for token, each in zip(found.tokens, said, strict=True):
        assert (token.token, token.channel) == (each.token, each.channel)
        assert (token.logprob, token.candidates) == (each.logprob, each.candidates)
        assert (token.tool_calls, token.token_ids) == (each.tool_calls, each.token_ids)


def test_who_changes_an_answer_changes_his_own_copy() -> None:
    held, calls = cache(), [{"function": {"name": "f"}}]
    said = TokenEvent("", 1, 1, "s", "m", channel=Channel.TOOL_CALLS, tool_calls=calls)
    held.put(b"k", parts(said), ended(), 0)
    calls.clear()
    for _ in range(2):
        found = held.get(b"k", 0)
        assert found is not None
        assert found.tokens[0].tool_calls == [{"function": {"name": "f"}}]
        found.tokens.clear()
        found = held.get(b"k", 0)
        assert found is not None
        (found.tokens[0].tool_calls or []).clear()


# What is the same question


def test_what_does_not_change_an_answer_does_not_change_its_key() -> None:
    held = cache()
    reordered = {name: BODY[name] for name in reversed(BODY)}
    options = {"seed": 7, "temperature": 0}
    for body in (
        reordered,
        {**BODY, "options": options},
        {**BODY, "keep_alive": 0},
        {**BODY, "stream": False},
        {**BODY, "model": "another name of it"},
    ):
        assert held.key("d", "/api/generate", json.dumps(body).encode()) == key_of(held)


DIFFERENT: list[dict[str, Any]] = [
    {"digest": "e"},
    {"path": "/api/chat"},
    {"prompt": "canary"},
    {"truncate": True},
    {"options": {"temperature": 0, "seed": 8}},
    {"options": {"temperature": 0}},
    {"options": None},
    {"logprobs": True},
    {"format": {"properties": {"a": {}, "b": {}}}},
    {"format": {"properties": {"b": {}, "a": {}}}},
    {"_debug_render_only": True},
]


def test_what_may_change_an_answer_changes_its_key() -> None:
    held = cache()
    keys = [key_of(held), *(key_of(held, **each) for each in DIFFERENT)]
    assert len(set(keys)) == len(keys)


def test_a_key_tells_nothing_without_the_secret() -> None:
    one, other = AnswerCache(1, 1, b"a" * 16), AnswerCache(1, 1, b"b" * 100)
    assert key_of(one) != key_of(other)
    assert key_of(one) == key_of(one)
    assert b"CANARY" not in key_of(one)
    with pytest.raises(ValueError, match="16 bytes"):
        AnswerCache(1, 1, b"short")


def test_nothing_is_shown() -> None:
    held = cache()
    held.put(key_of(held), parts(event("CANARY")), ended(), 0)
    found = held.get(key_of(held), 0)
    assert repr(held) == "<AnswerCache 1 answers>"
    for each in (held, found, found and found.tokens[0], found and found.tokens):
        assert "CANARY" not in repr(each)
    assert "9" not in repr(found), "a count of what was said"


# What is kept


@pytest.mark.parametrize("finish", [*Finish, None])
def test_only_an_answer_that_ended_by_itself_is_kept(finish: Finish | None) -> None:
    held = cache()
    whole = finish in (Finish.STOP, Finish.LENGTH)
    assert held.put(b"k", parts(event()), ended(finish), 0) is whole
    assert (held.get(b"k", 0) is not None) is whole


@pytest.mark.parametrize("source", Source)
def test_what_is_second_hand_is_not_kept(source: Source) -> None:
    own = source not in (Source.CACHED, Source.SUBSTITUTED)
    assert (pack([event(), event(source=source)]) is not None) is own


def test_a_newer_answer_takes_the_place_of_an_older_one() -> None:
    held = cache()
    held.put(b"k", parts(event("old" * 99)), ended(), 0)
    held.put(b"k", parts(event("new")), ended(), SECOND)
    found = held.get(b"k", SECOND)
    assert (text_of(found), found and found.age_ns, len(held)) == ("new", 0, 1)
    assert held.held_bytes < 2 * OVERHEAD_BYTES
    assert not held.put(b"k", parts(event("cut")), ended(Finish.FAILED), SECOND)
    assert text_of(held.get(b"k", SECOND)) == "new", "a failure has thrown it away"


def test_it_lives_as_long_as_it_is_told() -> None:
    held = cache(ttl_s=60.0)
    held.put(b"k", parts(event()), ended(), 0)
    assert held.get(b"k", 60 * SECOND - 1) is not None
    assert held.get(b"k", 60 * SECOND) is None, "it was used, and so lived on"
    assert (len(held), held.held_bytes) == (0, 0)


def test_what_is_too_old_goes_without_being_asked_for() -> None:
    held = cache(ttl_s=1.0)
    held.put(b"a", parts(event()), ended(), 0)
    held.put(b"b", parts(event()), ended(), SECOND // 2)
    held.get(b"a", SECOND // 2)
    held.expire(SECOND)
    assert (held.get(b"a", SECOND), held.get(b"b", SECOND) is not None) == (None, True)
    held.put(b"c", parts(event()), ended(), 2 * SECOND)
    assert len(held) == 1


@pytest.mark.parametrize("max_bytes", [-1, 0, OVERHEAD_BYTES])
def test_without_room_nothing_is_kept(max_bytes: int) -> None:
    held = cache(max_bytes)
    assert not held.put(b"k", parts(event()), ended(), 0)
    assert len(held) == 0


def test_what_cannot_be_packed_is_not_kept() -> None:
    calls = [{"function": {"arguments": {"x": 1 << 64}}}]
    assert pack([TokenEvent("", 1, 1, "s", "m", tool_calls=calls)]) is None


def test_an_answer_that_is_too_long_drives_nobody_out() -> None:
    held = cache(2 * OVERHEAD_BYTES)
    held.put(b"a", parts(event()), ended(), 0)
    assert not held.put(b"b", parts(event("x" * 2 * OVERHEAD_BYTES)), ended(), 0)
    assert text_of(held.get(b"a", 0)) == "x"


def test_forgetting_everything() -> None:
    held = cache()
    held.put(b"k", parts(event()), ended(), 0)
    held.clear()
    assert (len(held), held.held_bytes, held.get(b"k", 0)) == (0, 0, None)
    assert held.put(b"k", parts(event()), ended(), 0)


def size_of(text: str) -> int:
    """What an answer of one token counts for."""
    alone = cache()
    alone.put(b"k", parts(event(text)), ended(), 0)
    return alone.held_bytes


class Model(RuleBasedStateMachine):
    """The cache against a list of (key, text, time), the last used last."""

    CAP = 4 * OVERHEAD_BYTES

    def __init__(self) -> None:
        super().__init__()
        self.held = cache(self.CAP, ttl_s=10.0)
        self.order: list[tuple[bytes, str, int]] = []
        self.now_ns = 0

    def size(self) -> int:
        return sum(size_of(text) for _, text, _ in self.order)

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]), size=st.integers(0, 1600))
    def put(self, key: bytes, size: int) -> None:
        text = "x" * size
        kept = size_of(text) <= self.CAP
        assert self.held.put(key, parts(event(text)), ended(), self.now_ns) is kept
        if kept:
            self.order = [each for each in self.order if each[0] != key]
            while self.size() + size_of(text) > self.CAP:
                self.order.pop(0)
            self.order.append((key, text, self.now_ns))

    @rule(key=st.sampled_from([b"a", b"b", b"c", b"d", b"e"]))
    def get(self, key: bytes) -> None:
        expected = next((each for each in self.order if each[0] == key), None)
        assert text_of(self.held.get(key, self.now_ns)) == (expected and expected[1])
        if expected:
            self.order.remove(expected)
            self.order.append(expected)

    @rule(passed_s=st.integers(0, 6))
    def expire(self, passed_s: int) -> None:
        self.now_ns += passed_s * SECOND
        self.held.expire(self.now_ns)
        self.order = [each for each in self.order if self.now_ns - each[2] < 10 * SECOND]

    @invariant()
    def holds_no_more_and_no_less(self) -> None:
        assert len(self.held) == len(self.order)
        assert self.held.held_bytes == self.size() <= self.CAP


TestLaws = Model.TestCase
TestLaws.settings = settings(max_examples=50, stateful_step_count=30)


def test_the_measure_is_generous() -> None:
    """The bytes counted are more than those of all texts, names and numbers."""
    held = cache()
    said = [event("日本" * 50) for _ in range(20)]
    held.put(b"k" * 32, parts(*said), ended(), 0)
    assert held.held_bytes > sum(len(each.token.encode()) for each in said) + 32
    assert repr(CachedToken("CANARY")) == "<CachedToken>"
