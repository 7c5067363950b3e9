"""The contract, against a daemon that says what it is told to."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter import (
    Channel,
    Config,
    DaemonConfig,
    DaemonMode,
    Decipher,
    Finish,
    FrameConfig,
    OllamaAdapter,
    PoolConfig,
    Source,
    StreamConfig,
    Tier,
    TokenEvent,
)
from ollama_adapter.errors import (
    AdapterError,
    ConnectFailed,
    ConnectionLost,
    ContextOverflow,
    GenerationError,
    Interruption,
    InvalidRequest,
    ModelNotFound,
    ProtocolError,
    ReadTimeout,
    RemoteModelRefused,
    SessionNotFound,
    StreamInterrupted,
)
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
    json_response,
    response,
    stream,
)
from tests.serving import WATCHDOG_S, collect, config_for, saying, sending, served, text_of, until

pytestmark = pytest.mark.anyio


class Endless:
    """A daemon that sends two tokens and then waits until it is let go on, or dropped."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    def __call__(self, _: ScriptedRequest) -> Iterator[Piece]:
        yield STREAM_HEAD
        yield chunk({"response": "one ", "done": False})
        yield chunk({"response": "two ", "done": False})
        yield self.go_on
        yield b"".join(map(chunk, answer(["three"]))) + STREAM_END


async def until_closed(daemon: ScriptedDaemon, count: int) -> None:
    """The daemon has seen `count` connections dropped."""
    await until(lambda: daemon.closed >= count)


async def test_tokens_arrive_in_order_with_index_time_and_energy() -> None:
    async with served(saying("a", "b", "c")) as (adapter, _):
        async with adapter.generate_stream("m", "p") as tokens:
            events = await collect(tokens)
    assert text_of(events) == "abc"
    assert [each.index for each in events] == [0, 1, 2]
    assert {each.model for each in events} == {"m"}
    assert {each.session_id for each in events} == {tokens.session_id}
    assert {each.source for each in events} == {Source.LIVE}
    stamps = [each.timestamp_ms for each in events]
    assert stamps == sorted(stamps)
    assert events[0].delta_ms == 0
    assert all(each.energy is not None and 0 <= each.energy <= 1 for each in events)


async def test_statistics_tell_how_it_ended() -> None:
    async with served(saying("a", "b", prompt_eval_count=7)) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        assert tokens.statistics.finish is None
        events = await collect(tokens)
    statistics = tokens.statistics
    assert statistics.finish is Finish.STOP
    assert (statistics.tokens, statistics.eval_count, statistics.prompt_eval_count) == (2, 2, 7)
    assert statistics.ttft_ms is not None and statistics.ttft_ms > 0
    assert statistics.mean_energy == pytest.approx(sum(e.energy or 0 for e in events) / 2)
    assert statistics.served_by == "m" and statistics.warm is False
    assert [each.name for each in statistics.guarantees] == ["ttft cold", "throughput", "handling"]


class Dawdling(Decipher):
    """Has the loop held up for more than a frame, between the arrival of tokens and the turn of their reader."""

    def ingest_read(self, events: Sequence[TokenEvent]) -> None:
        super().ingest_read(events)
        asyncio.get_running_loop().call_soon(time.sleep, 0.02)  # noqa: TID251 - held up it has to be


async def test_handling_lasts_until_the_reader_that_waits_has_the_token() -> None:
    async with (
        ScriptedDaemon(saying("a", "b")) as daemon,
        OllamaAdapter(
            config_for(daemon), decipher=Dawdling(FrameConfig(), SystemClock())
        ) as adapter,
    ):
        tokens = adapter.generate_stream("m", "p")
        assert text_of(await collect(tokens)) == "ab"
    handling = tokens.statistics.guarantees[-1]
    assert (handling.name, handling.met) == ("handling", False)


async def test_health_tells_how_the_promises_have_been_kept() -> None:
    async with served(saying("a", "b")) as (adapter, _):
        assert {each.latest for each in (await adapter.health()).guarantees} == {None}
        await adapter.generate("m", "p")
        await adapter.generate("m", "p")
        kept = (await adapter.health()).guarantees
    counts = {each.name: each.met + each.missed for each in kept}
    assert counts == {"ttft warm": 1, "ttft cold": 1, "throughput": 0, "handling": 2}


@pytest.mark.parametrize(("tier", "floor"), [(Tier.LOW, 5.0), (Tier.HIGH, 30.0)])
async def test_the_throughput_that_is_expected_is_the_machines(tier: Tier, floor: float) -> None:
    """And the velocity's is not: the energy of an answer is the same on every machine."""
    async with served(saying("a", "b")) as (_, daemon):
        config = replace(config_for(daemon), pool=PoolConfig(tier=tier))
        async with OllamaAdapter(config) as adapter:
            assert adapter.verdict.tier is tier
            tokens = adapter.generate_stream("m", "p")
            await collect(tokens)
    assert tokens.statistics.guarantees[1].limit == floor


async def test_nothing_is_sent_before_the_first_step() -> None:
    async with served(saying("a")) as (adapter, daemon):
        tokens = adapter.generate_stream("m", "p")
        await checkpoint()
        assert daemon.generations() == []
        await collect(tokens)
        assert len(daemon.generations()) == 1


async def test_a_bad_keyword_is_named_at_the_call_and_nothing_is_sent() -> None:
    async with served(saying("a")) as (adapter, daemon):
        with pytest.raises(InvalidRequest, match="temperature"):
            _ = adapter.generate_stream("m", "p", temperature="hot")
        with pytest.raises(InvalidRequest, match="tempature"):
            _ = adapter.generate_stream("m", "p", tempature=1.0)
        with pytest.raises(InvalidRequest, match="messages"):
            _ = adapter.chat_stream("m", "hello")  # type: ignore[arg-type]
        with pytest.raises(InvalidRequest, match="prompt is empty"):
            _ = adapter.generate_stream("m", "")
        with pytest.raises(InvalidRequest, match="session_id"):
            _ = adapter.generate_stream("m", "p", session_id=7)
        assert daemon.generations() == []


async def test_what_is_sent_is_what_was_asked_for() -> None:
    async with served(saying("a")) as (adapter, daemon):
        await adapter.generate("m", "p", temperature=0, num_ctx=64, stop=["x"], system="s")
    sent = daemon.generations()[0].json()
    assert sent["model"] == "m:latest" and sent["prompt"] == "p" and sent["system"] == "s"
    assert sent["options"] == {"temperature": 0, "num_ctx": 64, "stop": ["x"]}
    assert sent["truncate"] is False
    assert sent["keep_alive"] == "5m"
    assert (sent["logprobs"], sent["top_logprobs"]) == (True, 5)


async def test_the_session_id_is_ours_or_the_callers_and_unique() -> None:
    async with served(saying("a")) as (adapter, _):
        first = adapter.generate_stream("m", "p", session_id="mine")
        assert first.session_id == "mine"
        with pytest.raises(InvalidRequest, match="session_id"):
            _ = adapter.generate_stream("m", "p", session_id="mine")
        await collect(first)
        second = adapter.generate_stream("m", "p", session_id="mine")
        assert text_of(await collect(second)) == "a"
        assert (await adapter.generate_stream("m", "p")).session_id


async def test_a_stream_stopped_before_its_first_step_is_empty() -> None:
    async with served(saying("a")) as (adapter, daemon):
        tokens = adapter.generate_stream("m", "p")
        await adapter.stop_generation(tokens.session_id)
        assert await collect(tokens) == []
        assert tokens.statistics.finish is Finish.ABORTED
        assert daemon.generations() == []


async def test_stop_generation_drops_the_connection_and_ends_the_iterator_quietly() -> None:
    async with served(Endless()) as (adapter, daemon):
        tokens = adapter.generate_stream("m", "p")
        assert (await anext(tokens)).token == "one "
        await adapter.stop_generation(tokens.session_id)
        assert await collect(tokens) == []  # "two " was buffered, and is discarded
        assert tokens.statistics.finish is Finish.ABORTED
        await until_closed(daemon, 1)
        await adapter.stop_generation(tokens.session_id)  # has ended: nothing


async def test_stop_generation_reaches_a_reader_that_waits() -> None:
    async with served(Endless()) as (adapter, daemon):
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        await anext(tokens)
        async with asyncio.timeout(WATCHDOG_S), asyncio.TaskGroup() as group:
            reader = group.create_task(collect(tokens))
            await checkpoint()
            await adapter.stop_generation(tokens.session_id)
        assert reader.result() == []
        await until_closed(daemon, 1)


async def test_stop_generation_of_an_unknown_id_is_an_error() -> None:
    async with served(saying("a")) as (adapter, _):
        with pytest.raises(SessionNotFound):
            await adapter.stop_generation("never was")


async def test_leaving_async_with_aborts() -> None:
    async with served(Endless()) as (adapter, daemon):
        async with adapter.generate_stream("m", "p") as tokens:
            async for _ in tokens:
                break
        assert tokens.statistics.finish is Finish.ABORTED
        await until_closed(daemon, 1)


async def test_cancelling_the_consumer_aborts() -> None:
    reached = asyncio.Event()

    async def consume(adapter: OllamaAdapter) -> None:
        async with adapter.generate_stream("m", "p") as tokens:
            await anext(tokens)
            await anext(tokens)
            reached.set()
            await anext(tokens)

    async with served(Endless()) as (adapter, daemon):
        task = asyncio.get_running_loop().create_task(consume(adapter))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until_closed(daemon, 1)


async def test_a_cancelled_step_loses_no_token() -> None:
    endless = Endless()
    async with served(endless) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        await anext(tokens)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await anext(tokens)
        endless.go_on.set()
        assert text_of(await collect(tokens)) == "three"


async def test_closing_the_adapter_aborts_every_session() -> None:
    async with ScriptedDaemon(Endless()) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        await adapter.aclose()
        assert await collect(tokens) == []
        await until_closed(daemon, 1)
        with pytest.raises(AdapterError, match="closed"):
            _ = adapter.generate_stream("m", "p")
        await adapter.aclose()


async def test_awaiting_a_stream_gives_the_stream() -> None:
    async with served(saying("a")) as (adapter, _):
        tokens = await adapter.generate_stream("m", "p")
        assert text_of(await collect(tokens)) == "a"


async def test_a_forgotten_stream_warns_and_lets_the_daemon_go() -> None:
    async with served(Endless()) as (adapter, daemon):
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        with pytest.warns(ResourceWarning, match="async with"):
            del tokens
            gc.collect()
        await until_closed(daemon, 1)


CUT = STREAM_HEAD + chunk({"response": "half", "done": False})


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param([CUT], StreamInterrupted, id="cut in the middle"),
        pytest.param([CUT, None], StreamInterrupted, id="reset in the middle"),
        pytest.param([CUT + STREAM_END], StreamInterrupted, id="ends cleanly without its end"),
        pytest.param(
            [CUT + chunk({"error": "an error was encountered while running the model: x"})],
            StreamInterrupted,
            id="error line",
        ),
        pytest.param([CUT + b"4\r\nha!\n\r\n"], ProtocolError, id="garbage line"),
        pytest.param([CUT + b"zz\r\n"], ProtocolError, id="broken framing"),
        pytest.param(
            [CUT + b'13\r\n{"response":"\xff\xfe"}\n\r\n'], ProtocolError, id="invalid UTF-8"
        ),
    ],
)
async def test_what_came_before_a_fault_is_delivered_and_then_the_fault_raised(
    sent: list[Piece], error: type[AdapterError]
) -> None:
    async with served(lambda _: sent) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        assert (await anext(tokens)).token == "half"
        with pytest.raises(error):
            await anext(tokens)
        assert tokens.statistics.finish is Finish.FAILED
        assert tokens.statistics.error == error.__name__
        assert await collect(tokens) == []  # raised once


@pytest.mark.parametrize(
    ("sent", "error"),
    [
        pytest.param(b"SSH-2.0-OpenSSH_9.2\r\n", ProtocolError, id="another protocol"),
        pytest.param(response(b"<html>", kind="text/html"), ProtocolError, id="a web page"),
        pytest.param(response(b"", 302), ProtocolError, id="a redirect"),
        pytest.param(b"", StreamInterrupted, id="nothing"),
        pytest.param(
            json_response({"error": "model 'm' not found"}, 404), ModelNotFound, id="no model"
        ),
    ],
)
async def test_an_answer_that_is_none_is_an_error(sent: bytes, error: type[AdapterError]) -> None:
    async with served(sending(sent)) as (adapter, _):
        with pytest.raises(error):
            await adapter.generate("m", "p")


async def test_a_silent_daemon_is_given_up_within_the_limits() -> None:
    limits = StreamConfig(first_token_s=0.05, next_token_s=0.05, resume_tries=0)
    never = asyncio.Event()
    async with served(lambda _: [never], limits) as (adapter, daemon):
        with pytest.raises(ReadTimeout, match="first token"):
            await adapter.generate("m", "p")
        await until_closed(daemon, 1)
    for each in (limits, StreamConfig(next_token_s=0.05, resume_tries=0)):
        async with served(Endless(), each) as (adapter, _):
            with pytest.raises(StreamInterrupted, match="next token") as caught:
                await adapter.generate("m", "p")
            assert caught.value.reason is Interruption.STALLED


async def test_a_slow_reader_makes_the_daemon_wait_and_loses_nothing() -> None:
    words = [f"{n:016384d}" for n in range(2_000)]  # 32 MB: more than the kernel's buffers hold
    sent = 0

    def script(_: ScriptedRequest) -> Iterator[Piece]:
        nonlocal sent
        yield STREAM_HEAD
        for word in words:
            yield chunk({"response": word, "done": False})
            sent += 1
        yield b"".join(map(chunk, answer([]))) + STREAM_END

    async with served(script, StreamConfig(buffer_tokens=16)) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        first = await anext(tokens)
        before = -1
        while before != sent:  # until the daemon stands still
            before = sent
            for _ in range(200):
                await checkpoint()
        assert sent < len(words), "the daemon was never held up"
        rest = await collect(tokens)
    assert [each.token for each in (first, *rest)] == words


async def test_thinking_text_and_tool_calls_are_channels_of_their_own() -> None:
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    records: list[dict[str, Any]] = [
        {"message": {"role": "assistant", "content": "", "thinking": "hm"}, "done": False},
        {"message": {"role": "assistant", "content": "so"}, "done": False},
        {"message": {"role": "assistant", "content": "", "tool_calls": [call]}, "done": False},
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop"},
    ]
    messages = [{"role": "user", "content": "add"}]
    async with served(lambda _: [stream(records)]) as (adapter, daemon):
        events = await collect(adapter.chat_stream("m", messages, tools=[{"type": "function"}]))
        whole = await adapter.chat("m", messages)
    channels = [each.channel for each in events]
    assert channels == [Channel.THINKING, Channel.TEXT, Channel.TOOL_CALLS]
    assert events[2].tool_calls == [call] and events[2].token == ""
    assert (whole.text, whole.thinking, whole.tool_calls) == ("so", "hm", [call])
    assert daemon.generations()[0].json()["tools"] == [{"type": "function"}]


async def test_generate_gives_the_whole_answer_with_its_statistics() -> None:
    async with served(saying("a", "b")) as (adapter, _):
        whole = await adapter.generate("m", "p")
    assert whole.text == "ab"
    assert whole.statistics.finish is Finish.STOP


async def test_embed_gives_a_vector_per_text() -> None:
    def script(request: ScriptedRequest) -> list[Piece]:
        vectors = [[1.0, 0.0] for _ in request.json()["input"]]
        return [json_response({"embeddings": vectors, "prompt_eval_count": 4})]

    async with served(script) as (adapter, _):
        result = await adapter.embed("m", ["one", "two"])
    assert result.vectors == [[1.0, 0.0], [1.0, 0.0]]
    assert result.prompt_eval_count == 4


async def test_log_probabilities_reach_the_event_best_first() -> None:
    top = [{"token": "a", "logprob": -0.1}, {"token": "b", "logprob": -3.0}]
    entry = {"token": "a", "logprob": -0.1, "top_logprobs": top}
    records = [{"response": "a", "done": False, "logprobs": [entry]}, *answer([])]
    async with served(lambda _: [stream(records)]) as (adapter, _):
        (event,) = await collect(adapter.generate_stream("m", "p"))
    assert event.logprobs == [-0.1, -3.0]
    assert event.logprob == -0.1
    assert event.candidates is not None and [c.token for c in event.candidates] == ["a", "b"]


async def test_a_daemon_without_log_probabilities_still_gives_energy() -> None:
    async with served(saying("a", "b"), version="0.12.0") as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        events = await collect(tokens)
        assert (await adapter.health()).missing == ("logprobs", "truncate")
        assert tokens.statistics.degraded == ("logprobs", "truncate")
        unasked = await adapter.generate("m", "p", logprobs=False, truncate=True)
        assert unasked.statistics.degraded == ()
    assert [each.logprobs for each in events] == [None, None]
    assert all(each.energy is not None and each.energy > 0 for each in events)


async def test_an_old_daemon_that_cut_the_prompt_is_found_out_by_its_counts() -> None:
    last = {"context": list(range(900)), "prompt_eval_count": 66, "eval_count": 1}
    async with served(saying("a", **last)) as (adapter, _):
        with pytest.raises(ContextOverflow) as caught:
            await adapter.generate("m", "p")
        assert (caught.value.prompt_tokens, caught.value.context_tokens) == (899, 66)
        whole = await adapter.generate("m", "p", truncate=True)
    assert whole.text == "a"


async def test_a_remote_model_is_refused_before_the_prompt_is_sent() -> None:
    class Remote(ScriptedDaemon):
        def _pieces(self, request: ScriptedRequest) -> Any:
            if request.path == "/api/show":
                return [json_response({"remote_host": "https://example.com"})]
            return super()._pieces(request)

    async with Remote(saying("a")) as daemon, OllamaAdapter(config_for(daemon)) as adapter:
        with pytest.raises(RemoteModelRefused):
            await adapter.generate("innocent", "p")
        with pytest.raises(RemoteModelRefused):
            _ = adapter.generate_stream("gpt-oss:20b-cloud", "p")
        assert daemon.generations() == []


async def test_an_answer_that_comes_from_elsewhere_is_dropped() -> None:
    records = [{"response": "", "remote_host": "https://example.com", "done": False}]
    never = asyncio.Event()
    async with served(lambda _: [stream(records, end=False), never]) as (adapter, _):
        with pytest.raises(RemoteModelRefused):
            await adapter.generate("m", "p")


async def test_a_model_is_loaded_once_for_many_streams_and_is_warm_after() -> None:
    async with served(saying("a")) as (adapter, daemon):
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(adapter.generate("m", "p"))
        again = await adapter.generate("M:latest", "p")
        assert again.statistics.warm is True
        loads = [r for r in daemon.requests if r.path == "/api/generate" and not r.json()["prompt"]]
    assert len(loads) == 1


async def test_health_check_answers_false_when_there_is_no_daemon() -> None:
    async with ScriptedDaemon(saying("a")) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        assert await adapter.health_check() is True  # it could be adopted
        assert (await adapter.health()).origin == ""
        await adapter.ensure_running()
        assert await adapter.health_check() is True
        await daemon.stop()
        assert await adapter.health_check() is False
        await adapter.aclose()


async def test_a_daemon_that_died_and_came_back_is_found_again() -> None:
    async with ScriptedDaemon(saying("a")) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        assert (await adapter.generate("m", "p")).text == "a"
        port = daemon.port
        await daemon.stop()
        with pytest.raises(AdapterError):
            await adapter.generate("m", "p")
        reborn = ScriptedDaemon(saying("b"))
        reborn.port = port
        async with reborn:
            assert (await adapter.generate("m", "p")).text == "b"
            assert adapter.daemon.starts == 2
        await adapter.aclose()


async def test_a_connection_that_cannot_be_made_is_said_so() -> None:
    async with ScriptedDaemon(saying("a")) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        await adapter.ensure_running()
        await daemon.stop()
        with pytest.raises((ConnectFailed, AdapterError), match=str(daemon.port)):
            await adapter.generate("m", "p")
        await adapter.aclose()


async def test_a_daemon_that_would_answer_instead_of_rendering_is_not_asked() -> None:
    async with served(saying("an answer"), version="0.5.0") as (adapter, daemon):
        with pytest.raises(InvalidRequest, match="_debug_render_only"):
            await adapter.generate("m", "p", _debug_render_only=True)
        assert daemon.generations() == []


async def test_a_count_of_nothing_is_no_count() -> None:
    async with served(saying("a", context=list(range(30))), version="0.1.30") as (adapter, _):
        assert (await adapter.generate("m", "p")).text == "a"


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param({}, id="nothing"),
        pytest.param({"error": "x"}, id="an error"),
        pytest.param({"embeddings": []}, id="too few"),
        pytest.param({"embeddings": [[1.0]] * 3}, id="too many"),
        pytest.param({"embeddings": [["x"], [1.0]]}, id="no numbers"),
        pytest.param({"embeddings": [[1.0], [1.0]], "remote_host": "h"}, id="from elsewhere"),
    ],
)
async def test_what_are_no_embeddings_is_an_error(sent: dict[str, Any]) -> None:
    async with served(sending(json_response(sent))) as (adapter, _):
        with pytest.raises((ProtocolError, RemoteModelRefused)):
            await adapter.embed("m", ["one", "two"])


@pytest.mark.parametrize("cuts", [1, 2])
async def test_an_embedding_that_was_cut_is_tried_once_more(cuts: int) -> None:
    vectors = json_response({"embeddings": [[1.0]]})

    def script(request: ScriptedRequest) -> list[Piece]:
        return [None if len(sent()) <= cuts else vectors]

    async with served(script) as (adapter, daemon):

        def sent() -> list[ScriptedRequest]:
            return [each for each in daemon.requests if each.path == "/api/embed"]

        if cuts == 1:
            assert (await adapter.embed("m", "one")).vectors == [[1.0]]
        else:
            with pytest.raises(ConnectionLost):
                await adapter.embed("m", "one")
        assert len(sent()) == 2
        assert not adapter.pool.at_work()


async def test_closing_ends_an_embedding_that_is_under_way() -> None:
    never = asyncio.Event()
    async with ScriptedDaemon(lambda _: [never]) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        embedding = asyncio.get_running_loop().create_task(adapter.embed("m", "text"))
        await until(daemon.generations)
        await adapter.aclose()
        with pytest.raises(AdapterError, match="closed"):
            await embedding


async def test_with_keep_alive_0_the_prompt_itself_loads_the_model() -> None:
    async with served(saying("a")) as (adapter, daemon):
        await adapter.generate("m", "p", keep_alive=0)
        posts = [each.json() for each in daemon.requests if each.path == "/api/generate"]
        assert [each["prompt"] for each in posts] == ["p"], "an empty request would unload it"


async def test_generations_with_other_options_than_the_first_are_given_its_model_and_told() -> None:
    async with served(saying("a")) as (adapter, daemon):
        async with asyncio.TaskGroup() as group:
            answers = [
                group.create_task(adapter.generate("m", "p", num_ctx=num_ctx, shift=False))
                for num_ctx in (2048, 8192, 2048)
            ]
        posts = [r.json() for r in daemon.requests if r.path == "/api/generate"]
    loads = [each for each in posts if not each["prompt"]]
    assert [(each["options"]["num_ctx"], each["shift"]) for each in loads] == [(2048, False)]
    assert {each["options"]["num_ctx"] for each in posts} == {2048}, "else it is loaded anew"
    told = [each.result().statistics.notes for each in answers]
    assert [len(each) for each in told] == [0, 1, 0]
    assert "num_ctx=8192 was not used" in told[1][0]


async def test_a_reader_that_waits_is_no_silence_of_the_daemon() -> None:
    limits = StreamConfig(next_token_s=0.5, buffer_tokens=2)
    go_on = asyncio.Event()

    def script(_: ScriptedRequest) -> Iterator[Piece]:
        yield STREAM_HEAD
        yield chunk({"response": "x", "done": False}) * 4
        yield go_on
        yield b"".join(map(chunk, answer(["y"]))) + STREAM_END

    async with served(script, limits) as (adapter, _):
        tokens = adapter.generate_stream("m", "p")
        await anext(tokens)
        clock = SystemClock()
        await clock.sleep_until_ns(clock.now_ns() + 700_000_000)  # longer than the limit
        rest = asyncio.get_running_loop().create_task(collect(tokens))
        await clock.sleep_until_ns(clock.now_ns() + 100_000_000)
        go_on.set()
        assert text_of(await rest) == "xxxy"


async def test_a_fault_of_ours_is_no_end_of_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError

    async with ScriptedDaemon(saying("a")) as daemon:
        adapter = OllamaAdapter(config_for(daemon))
        monkeypatch.setattr(adapter.client, "generate", broken)
        with pytest.raises(GenerationError, match="ZeroDivisionError"):
            await adapter.generate("m", "p")
        with pytest.raises(ZeroDivisionError):
            await adapter.aclose()


def test_an_adapter_that_was_not_closed_serves_a_second_loop_as_well() -> None:
    port = find_free_port()
    adapter = OllamaAdapter(Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT)))

    async def ask(*, last: bool) -> str:
        daemon = ScriptedDaemon(saying("a"))
        daemon.port = port
        async with daemon:
            text = (await adapter.generate("m", "p")).text
            if last:
                await adapter.aclose()
            return text

    assert asyncio.run(ask(last=False)) == "a"
    assert asyncio.run(ask(last=True)) == "a"
