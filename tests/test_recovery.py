"""Streams that were cut: they go on by the right way, or end with the reason; no token lost, none twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, cast

import pytest

from ollama_adapter import (
    Decipher,
    Finish,
    OllamaAdapter,
    Source,
    State,
    StreamConfig,
    TokenEvent,
)
from ollama_adapter.backing import Backing, Hold
from ollama_adapter.config import FrameConfig
from ollama_adapter.core.requests import generate_request
from ollama_adapter.core.transcript import Transcript
from ollama_adapter.errors import (
    Interruption,
    ProtocolError,
    ReadTimeout,
    StreamInterrupted,
)
from ollama_adapter.events import Statistics, Way
from ollama_adapter.recovery import Recovery
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    ManualClock,
    Piece,
    PretendModel,
    PretendOllama,
    ScriptedRequest,
    answer,
    chunk,
    json_response,
    stream,
)
from tests.serving import WATCHDOG_S, collect, served, text_of, until

pytestmark = pytest.mark.anyio

PROMPT = "Tell me of the river."
GREEDY = {"temperature": 0}


@asynccontextmanager
async def pretending(
    faults: str = "", *models: PretendModel, **limits: Any
) -> AsyncIterator[tuple[OllamaAdapter, PretendOllama]]:
    async with PretendOllama(*models, faults=faults) as daemon:
        config = replace(daemon.config, stream=StreamConfig(**limits))
        async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config) as adapter:
            yield adapter, daemon


async def uncut(adapter: OllamaAdapter, daemon: PretendOllama, **options: Any) -> str:
    """What the answer is without a fault."""
    faults, daemon.faults = daemon.faults, ""
    answer = await adapter.generate("pretend", PROMPT, **options)
    daemon.faults = faults
    return answer.text


async def events_of(adapter: OllamaAdapter, **options: Any) -> tuple[list[TokenEvent], Any]:
    tokens = adapter.generate_stream("pretend", PROMPT, **options)
    async with tokens:
        events = await collect(tokens)
    return events, tokens.statistics


# --- by which way -----------------------------------------------------------------------------------


CUTS = {
    "rst@12*1": Interruption.CUT,
    "eof@5*1": Interruption.CUT,
    "error_line@7*1": Interruption.RUNNER_DIED,
    "no_done@9*1": Interruption.NO_LAST_RECORD,
    "no_done*1": Interruption.NO_LAST_RECORD,
    "truncated_chunk@3*1": Interruption.CUT,
    "half_json@6*1": Interruption.CUT,
    "half_utf8@8*1": Interruption.CUT,
    "stall@10*1": Interruption.STALLED,
}


@pytest.mark.parametrize("fault", CUTS)
@pytest.mark.parametrize(
    ("options", "way", "source"),
    [
        ({"temperature": 0}, Way.RERUN, Source.REPLAYED),
        ({"seed": 7, "temperature": 1.0}, Way.RERUN, Source.REPLAYED),
        ({"temperature": 0, "logprobs": False}, Way.RERUN, Source.REPLAYED),
    ],
    ids=["greedy", "seeded", "without_logprobs"],
)
async def test_a_cut_answer_of_a_deterministic_request_is_the_uncut_one(
    fault: str, options: dict[str, Any], way: Way, source: Source
) -> None:
    async with pretending(fault, next_token_s=0.3) as (adapter, daemon):
        whole = await uncut(adapter, daemon, **options)
        events, statistics = await events_of(adapter, **options)
        assert [each.kind for each in daemon.struck], "the fault did not happen"
    assert text_of(events) == whole
    assert [each.index for each in events] == list(range(len(events)))
    assert statistics.finish is Finish.STOP
    (seam,) = statistics.seams
    assert (seam.way, seam.reason) == (way, CUTS[fault].value)
    assert {each.source for each in events[seam.index :]} <= {source}
    assert {each.source for each in events[: seam.index]} == {Source.LIVE}


async def test_a_request_that_is_not_deterministic_goes_on_from_its_text() -> None:
    # The pretended model is greedy without being asked: only we do not know it.
    async with pretending("rst@12*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon)
        events, statistics = await events_of(adapter)
    assert text_of(events) == whole
    (seam,) = statistics.seams
    assert (seam.index, seam.way, seam.fidelity, seam.exact) == (12, Way.TEXT, 1.0, False)
    assert {(each.source, each.way) for each in events[12:]} == {(Source.RESUMED, Way.TEXT)}
    assert events[12].energy is not None


async def test_a_conversation_goes_on_from_its_text_too() -> None:
    messages = [{"role": "user", "content": PROMPT}]
    async with pretending() as (adapter, daemon):
        whole = (await adapter.chat("pretend", messages)).text
        daemon.faults = "error_line@7*1"
        answer = await adapter.chat("pretend", messages)
    assert answer.text == whole
    assert [each.way for each in answer.statistics.seams] == [Way.TEXT]


async def test_what_may_still_come_counts_what_came() -> None:
    async with pretending("rst@12*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon, num_predict=20)
        events, statistics = await events_of(adapter, num_predict=20)
    assert text_of(events) == whole
    assert statistics.finish is Finish.LENGTH


async def test_an_answer_cut_right_before_its_last_record_is_whole() -> None:
    async with pretending("eof@20*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon, num_predict=20)
        events, statistics = await events_of(adapter, num_predict=20)
        assert len(daemon.generations()) == 2  # nothing more was asked for
    assert text_of(events) == whole
    assert statistics.finish is Finish.LENGTH
    assert [each.index for each in statistics.seams] == [len(events)]


async def test_a_second_run_is_not_computed_for_the_last_record_alone() -> None:
    async with pretending("eof@20*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon, num_predict=20, **GREEDY)
        events, statistics = await events_of(adapter, num_predict=20, **GREEDY)
        assert len(daemon.generations()) == 2
    assert text_of(events) == whole
    assert statistics.finish is Finish.LENGTH


async def test_nonsense_after_a_seam_is_what_it_is() -> None:
    async with pretending("rst@12*1, garbage@20*1") as (adapter, _):
        tokens = adapter.generate_stream("pretend", PROMPT, **GREEDY)
        with pytest.raises(ProtocolError):
            await collect(tokens)
    assert tokens.statistics.tokens == 20


async def test_what_delivered_nothing_is_asked_anew() -> None:
    async with pretending("eof@0*1") as (adapter, daemon):
        events, statistics = await events_of(adapter)
        assert len(daemon.generations()) == 2
    assert {each.source for each in events} == {Source.LIVE}
    assert [(each.index, each.way) for each in statistics.seams] == [(0, Way.ANEW)]


async def test_a_second_run_that_is_too_long_by_policy_goes_on_from_its_text() -> None:
    async with pretending("rst@12*1", resume_tokens=11) as (adapter, daemon):
        whole = await uncut(adapter, daemon, **GREEDY)
        events, statistics = await events_of(adapter, **GREEDY)
    assert text_of(events) == whole
    assert [each.way for each in statistics.seams] == [Way.TEXT]


async def test_several_cuts_are_several_seams() -> None:
    async with pretending("rst@12*1, eof@30*1, error_line@40*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon, **GREEDY)
        events, statistics = await events_of(adapter, **GREEDY)
    assert text_of(events) == whole
    assert [each.index for each in statistics.seams] == [12, 30, 40]


async def test_thinking_is_compared_and_not_told_twice() -> None:
    thinker = PretendModel("pretend", capabilities=("completion", "thinking"))
    messages = [{"role": "user", "content": PROMPT}]
    async with pretending("", thinker) as (adapter, daemon):
        whole = await adapter.chat("pretend", messages, temperature=0)
        assert whole.thinking
        for fault in ("rst@3*1", "rst@15*1"):  # in the thinking, and after it
            daemon.faults = fault
            answer = await adapter.chat("pretend", messages, temperature=0)
            assert daemon.struck
            assert (answer.thinking, answer.text) == (whole.thinking, whole.text)


async def test_a_stop_string_across_the_seam_stops() -> None:
    async with pretending() as (adapter, daemon):
        words = (await uncut(adapter, daemon, **GREEDY)).split(" ")
        stop = f" {words[12]} {words[13]}"
        for options in (GREEDY, {}):
            daemon.faults = ""
            whole = (await adapter.generate("pretend", PROMPT, stop=[stop], **options)).text
            for at in (10, 11, 12):
                daemon.faults = f"rst@{at}*1"
                answer = await adapter.generate("pretend", PROMPT, stop=[stop], **options)
                assert answer.text == whole
                assert stop not in answer.text


# --- a daemon that dies ---------------------------------------------------------------------------


async def test_a_daemon_that_dies_and_comes_back_goes_on_with_the_answer() -> None:
    async with pretending("die@12=200ms*1") as (adapter, daemon):
        whole = await uncut(adapter, daemon, **GREEDY)
        events, statistics = await events_of(adapter, **GREEDY)
    assert text_of(events) == whole
    assert len(statistics.seams) == 1


async def test_a_stream_that_is_cut_stalls_in_the_frames_until_tokens_flow_again() -> None:
    clock = SystemClock()
    decipher = Decipher(FrameConfig(), clock)
    seen: list[tuple[str, State]] = []
    async with (
        PretendOllama(faults="die@12*1", token_s=0.01) as daemon,
        asyncio.timeout(WATCHDOG_S),
    ):
        config = replace(daemon.config, stream=StreamConfig())
        async with OllamaAdapter(config, clock=clock, decipher=decipher) as adapter:
            tokens = adapter.generate_stream("pretend", PROMPT, session_id="s", **GREEDY)
            async with tokens:
                events = [await anext(tokens) for _ in range(12)]
                await until(lambda: not daemon.alive)
                await until(lambda: _state(decipher) is State.STALLING)
                seen.append(("dead", State.STALLING))
                await daemon.revive()
                events += await collect(tokens)
    assert seen
    assert len(events) == tokens.statistics.tokens
    assert tokens.statistics.finish is Finish.STOP


def _state(decipher: Decipher) -> State | None:
    frame = decipher._composer.compose(0, SystemClock().now_ns(), 0)
    lane = frame.sessions.get("s")
    return lane.state if lane else None


# --- the clean end ----------------------------------------------------------------------------------


async def test_when_nothing_is_left_to_try_the_error_says_all() -> None:
    async with pretending("rst@12", resume_tries=2) as (adapter, _):
        tokens = adapter.generate_stream("pretend", PROMPT, seed=1, context=[1, 2])
        events: list[TokenEvent] = []
        with pytest.raises(StreamInterrupted) as caught:
            async for event in tokens:
                events.append(event)
    error = caught.value
    assert error.tokens == len(events) == 12
    assert error.reason is Interruption.CUT
    assert error.statistics is tokens.statistics
    assert error.statistics.finish is Finish.FAILED
    assert error.session_id == tokens.session_id
    assert error.hint
    assert any(each.startswith("tokens: ") for each in error.refusals)
    assert any(each.startswith("text: ") for each in error.refusals)


async def test_with_no_way_open_it_ends_at_the_first_interruption() -> None:
    async with pretending("rst@12*1") as (adapter, daemon):
        tokens = adapter.generate_stream("pretend", PROMPT, context=[1, 2])
        with pytest.raises(StreamInterrupted, match="could not go on"):
            await collect(tokens)
        assert len(daemon.generations()) == 1


async def test_going_on_can_be_switched_off() -> None:
    async with pretending("rst@12*1", resume_tries=0) as (adapter, daemon):
        with pytest.raises(StreamInterrupted, match=r"after 12 tokens$"):
            await collect(adapter.generate_stream("pretend", PROMPT, **GREEDY))
        assert len(daemon.generations()) == 1


async def test_tries_are_bounded() -> None:
    async with pretending("rst@12", resume_tries=3) as (adapter, daemon):
        with pytest.raises(StreamInterrupted):
            await collect(adapter.generate_stream("pretend", PROMPT, **GREEDY))
        assert len(daemon.generations()) == 4


async def test_the_time_to_go_on_is_bounded() -> None:
    async with pretending("die@12", resume_s=0.3) as (adapter, _):
        with pytest.raises(StreamInterrupted) as caught:
            await collect(adapter.generate_stream("pretend", PROMPT, **GREEDY))
    assert any("resume_s" in each or "Daemon" in each for each in caught.value.refusals)


async def test_an_answer_that_differs_the_second_time_is_not_mixed_with_the_first() -> None:
    said = iter(
        ([STREAM_HEAD + chunk({"response": "one two "}), None], [stream(answer(["one 2 "]))])
    )
    async with served(lambda _: next(said)) as (adapter, _):
        tokens = adapter.generate_stream("m", PROMPT, temperature=0, seed=3)
        events = [await anext(tokens)]
        with pytest.raises(StreamInterrupted) as caught:
            events += await collect(tokens)
    assert text_of(events) == "one two "
    assert any(Interruption.DIVERGED.value in each for each in caught.value.refusals)


HALVES = {
    "not a record": {"response": 5, "done": True},
    "half of an answer": {"response": "o", "done": False},
}


@pytest.mark.parametrize("fault", HALVES)
async def test_a_daemon_that_answers_nonsense_on_the_way_ends_nothing_but_the_stream(
    fault: str,
) -> None:
    entry = {"token": "one ", "logprob": -0.1, "top_logprobs": [{"token": "one ", "logprob": -0.1}]}
    cut: list[Piece] = [STREAM_HEAD + chunk({"response": "one ", "logprobs": [entry]}), None]

    def script(request: ScriptedRequest) -> list[Piece]:
        looks = request.json().get("stream") is False
        return [json_response(HALVES[fault])] if looks else cut

    async with served(script) as (adapter, _):
        with pytest.raises(StreamInterrupted) as caught:
            await collect(adapter.generate_stream("m", PROMPT, raw=True))
    assert any(fault in each for each in caught.value.refusals)


class ReadyBacking:
    """An embedded daemon that is there, with its model in memory."""

    embedded = renders = True

    async def check(self) -> None: ...

    async def load(self, _: Hold) -> None: ...


async def test_ids_that_are_read_one_by_one_get_the_time_that_writing_them_took() -> None:
    limits = StreamConfig(resume_s=10.0)
    request = generate_request("m", PROMPT, GREEDY, "5m")
    transcript = Transcript()
    for number in range(3):
        arrival_ns = 1 + number * 60_000_000_000
        event = TokenEvent("x", 0, 0, "s", "m", arrival_ns=arrival_ns, token_ids=(number,))
        transcript.add([event])
    backing = cast(Backing, ReadyBacking())
    recovery = Recovery(Hold(request, Statistics("s", "m")), backing, limits, ManualClock())
    found = await recovery.way_on(StreamInterrupted("cut"), transcript)
    assert found.joint.way is Way.TOKENS
    assert b'"continue_stepwise":true' in found.request.body
    assert found.limit_s == 240.0


async def test_aborting_while_going_on_ends_quietly() -> None:
    async with pretending("die@12*1") as (adapter, daemon):
        tokens = adapter.generate_stream("pretend", PROMPT, **GREEDY)
        events = [await anext(tokens) for _ in range(12)]
        await until(lambda: not daemon.alive)
        await tokens.stop()
        assert await collect(tokens) == []
        assert tokens.statistics.finish is Finish.ABORTED
    assert len(events) == 12


async def test_the_repeat_guard_is_an_end_of_its_own() -> None:
    async with pretending("repeat@30*1") as (adapter, daemon):
        events, statistics = await events_of(adapter, **GREEDY)
        assert len(daemon.generations()) == 1
    assert statistics.finish is Finish.REPEAT
    assert not statistics.seams
    assert events


async def test_a_first_token_that_never_comes_is_no_interruption() -> None:
    async with pretending("stall@0", first_token_s=0.2) as (adapter, _):
        with pytest.raises(ReadTimeout, match="first token"):
            await collect(adapter.generate_stream("pretend", PROMPT))


async def test_an_answer_that_is_whole_needs_no_end_of_its_response() -> None:
    """After the last record nothing is missing: the silence that follows is no interruption."""
    said: list[Piece] = [STREAM_HEAD, *map(chunk, answer(["one ", "two"])), asyncio.Event()]
    async with served(lambda _: said, StreamConfig(next_token_s=0.2)) as (adapter, daemon):
        tokens = adapter.generate_stream("m", PROMPT)
        assert text_of(await collect(tokens)) == "one two"
        assert len(daemon.generations()) == 1
    assert tokens.statistics.finish is Finish.STOP
    assert tokens.statistics.seams == ()


async def test_a_stream_says_why_it_stands_still_until_tokens_flow_again() -> None:
    go_on = asyncio.Event()
    first, *rest = map(chunk, answer(["one ", "two ", "three"]))
    cut: list[Piece] = [STREAM_HEAD, first, STREAM_END]
    whole: list[Piece] = [STREAM_HEAD, go_on, first, *rest, STREAM_END]
    said = iter((cut, whole))
    async with served(lambda _: next(said)) as (adapter, _):
        async with adapter.generate_stream("m", PROMPT, **GREEDY) as tokens:
            assert tokens.interruption is None
            await anext(tokens)
            await until(lambda: tokens.interruption is Interruption.NO_LAST_RECORD)
            go_on.set()
            await anext(tokens)
            assert tokens.interruption is None
            await collect(tokens)
        assert tokens.interruption is None
