"""The pretended daemon by itself: what it writes, when, for whom, and that it notices who leaves."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import Any

import pytest

from ollama_adapter import OllamaAdapter
from ollama_adapter.errors import ConfigError, ContextOverflow, PortTaken
from ollama_adapter.testing import ManualClock, Phase, PretendModel, PretendOllama
from ollama_adapter.testing.connection import Connection
from tests.serving import until
from tests.testing.wire import Conversation, Heard, ask

pytestmark = pytest.mark.anyio

SECOND = 1_000_000_000
HELLO = {"model": "pretend", "prompt": "hello"}
CHAT = {"model": "pretend", "messages": [{"role": "user", "content": "hello"}]}
ENDLESS = PretendModel("endless", length=None)


async def generate(daemon: PretendOllama, **fields: Any) -> Heard:
    return await ask(daemon.port, "/api/generate", HELLO | fields)


async def chat(daemon: PretendOllama, **fields: Any) -> Heard:
    return await ask(daemon.port, "/api/chat", CHAT | fields)


async def begin(daemon: PretendOllama, **fields: Any) -> Conversation:
    """A generation whose answer nobody has read yet."""
    conversation = await Conversation.open(daemon.port)
    await conversation.say("POST", "/api/generate", json.dumps(HELLO | fields).encode())
    return conversation


def last(heard: Heard) -> dict[str, Any]:
    return heard.records()[-1]


# What it writes


@pytest.mark.parametrize("cut", [0, 1, 5, 20, 63, 64])
@pytest.mark.parametrize(("path", "body"), [("/api/generate", HELLO), ("/api/chat", CHAT)])
async def test_the_rendered_prompt_and_the_text_so_far_are_continued_exactly(
    path: str, body: dict[str, Any], cut: int
) -> None:
    async with PretendOllama() as daemon:
        whole = await ask(daemon.port, path, body)
        shown = await ask(daemon.port, path, body | {"_debug_render_only": True})
        rendered = last(shown)["_debug_info"]["rendered_template"]
        pieces = [
            each.get("response", each.get("message", {}).get("content")) for each in whole.records()
        ]
        before = "".join(pieces[:cut])
        rest = await generate(daemon, prompt=rendered + before, raw=True)
    assert whole.text() == before + rest.text()
    assert len(pieces) == 65


async def test_a_stream_and_a_whole_answer_say_the_same() -> None:
    async with PretendOllama() as daemon:
        asked = {"logprobs": True, "top_logprobs": 3}
        streamed, whole = (
            await generate(daemon, **asked),
            await generate(daemon, stream=False, **asked),
        )
        entries = [entry for each in streamed.records() for entry in each.get("logprobs", [])]
    assert whole.text() == streamed.text()
    assert last(whole)["logprobs"] == entries
    assert last(whole)["eval_count"] == last(streamed)["eval_count"]
    assert {len(each["top_logprobs"]) for each in entries} == {3}


async def test_a_limit_is_kept_and_nought_is_none() -> None:
    async with PretendOllama() as daemon:
        limited = await generate(daemon, options={"num_predict": 7})
        free = await generate(daemon, options={"num_predict": 0})
    assert (last(limited)["eval_count"], last(limited)["done_reason"]) == (7, "length")
    assert last(free)["done_reason"] == "stop"
    assert free.text().startswith(limited.text())


async def test_a_limit_that_is_the_length_is_a_limit() -> None:
    async with PretendOllama() as daemon:
        free = await generate(daemon)
        limited = await generate(daemon, options={"num_predict": last(free)["eval_count"]})
    assert limited.text() == free.text()
    assert last(limited)["done_reason"] == "length"


async def test_a_prompt_that_is_too_long_is_refused_where_it_must_not_be_cut() -> None:
    async with PretendOllama() as daemon, OllamaAdapter(daemon.config) as adapter:
        with pytest.raises(ContextOverflow):
            await adapter.generate("pretend", "word " * 100, options={"num_ctx": 64})
        assert daemon.generations()[0].phase is Phase.REFUSED
        assert (await generate(daemon, prompt="word " * 100, options={"num_ctx": 64})).status == 200


@pytest.mark.parametrize("begins", [-1, 0, 2])
async def test_text_that_may_become_a_stop_string_is_held_back(begins: int) -> None:
    async with PretendOllama() as daemon:
        text = (await generate(daemon)).text()
        at = text.index(" ", 60) + begins + 1
        stop = text[at : at + 9]
        near = [stop[:-1] + "?", stop]
        stopped = await generate(daemon, options={"stop": near})
    assert stopped.text() == text[: text.index(stop)]
    assert last(stopped)["done_reason"] == "stop"


async def test_text_held_back_in_vain_is_not_lost() -> None:
    async with PretendOllama() as daemon:
        text = (await generate(daemon)).text()
        stops = [text[at : at + 5] + "\n" for at in range(0, len(text), 3)]
        assert (await generate(daemon, options={"stop": stops})).text() == text


async def test_a_format_is_kept() -> None:
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 12},
            "age": {"type": "integer", "minimum": 200},
            "sort": {"enum": ["a", "b"]},
            "tags": {"type": "array", "minItems": 2, "items": {"$ref": "#/$defs/tag"}},
        },
        "$defs": {"tag": {"anyOf": [{"type": "boolean"}, {"type": "null"}]}},
    }
    async with PretendOllama() as daemon:
        plain = json.loads((await generate(daemon, format="json")).text())
        value = json.loads((await chat(daemon, format=schema)).text())
    assert isinstance(plain, dict)
    assert list(value) == ["name", "age", "sort", "tags"]
    assert len(value["name"]) == 12
    assert value["age"] >= 200
    assert value["sort"] in ("a", "b")
    assert [type(each) for each in value["tags"]] == [bool, bool]


async def test_a_tool_is_called_and_its_result_is_answered() -> None:
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": parameters}}]
    async with PretendOllama() as daemon:
        called = await chat(daemon, tools=tools)
        messages = [*CHAT["messages"], {"role": "tool", "content": "rain"}]
        answered = await chat(daemon, tools=tools, messages=messages)
    (call,) = called.records()[0]["message"]["tool_calls"]
    assert call["function"]["name"] == "weather"
    assert list(call["function"]["arguments"]) == ["city"]
    assert called.text() == ""
    assert len(answered.text()) > 20


async def test_thinking_stands_apart() -> None:
    async with PretendOllama() as daemon:
        heard = await chat(daemon, model="pretend-thinker")
    thoughts = [each["message"].get("thinking", "") for each in heard.records()]
    assert len("".join(thoughts).split()) == 8
    assert len(heard.text().split()) == 64
    assert "<think>" not in heard.text() + "".join(thoughts)


async def test_seeds_and_temperature() -> None:
    async with PretendOllama() as daemon:
        warm: dict[str, Any] = {"temperature": 0.9}
        seeded = [(await generate(daemon, options=warm | {"seed": 7})).text() for _ in range(2)]
        free = [(await generate(daemon, options=warm)).text() for _ in range(2)]
    assert seeded[0] == seeded[1]
    assert len({*seeded, *free}) == 3


async def test_models_are_those_it_was_given() -> None:
    async with PretendOllama(
        "llama3.2:3b", PretendModel("nomic", capabilities=("embedding",))
    ) as daemon:
        listed = await ask(daemon.port, "/api/tags", method="GET")
        assert [each["name"] for each in listed.records()[0]["models"]] == [
            "llama3.2:3b",
            "nomic:latest",
        ]
        assert (await generate(daemon, model="llama3.2:3b")).status == 200
        assert (await generate(daemon)).status == 404
        await ask(daemon.port, "/api/copy", {"source": "nomic", "destination": "mine"})
        assert (await ask(daemon.port, "/api/show", {"model": "mine"})).status == 200
        await ask(daemon.port, "/api/delete", {"model": "mine"}, "DELETE")
        assert (await ask(daemon.port, "/api/show", {"model": "mine"})).status == 404
    with pytest.raises(ConfigError):
        PretendOllama("two words")
    for wrong in ({"num_parallel": 0}, {"token_s": -1.0}):
        with pytest.raises(ConfigError):
            PretendOllama(**wrong)


# When


async def test_nothing_comes_before_the_load_the_prompt_and_the_token_have_taken_their_time() -> (
    None
):
    clock = ManualClock()
    async with PretendOllama(clock=clock, load_s=3, prompt_s=2, token_s=1) as daemon:
        conversation = await begin(daemon, options={"num_predict": 3})
        phases = []
        for takes in (3, 2, 1, 1, 1):
            await until(lambda: clock.sleepers)
            phases.append((daemon.generations()[0].phase, daemon.generations()[0].sent))
            clock.advance(takes * SECOND)
        heard = await conversation.hear()
        conversation.close()
    assert phases == [
        (Phase.LOADING, 0),
        (Phase.EVALUATING, 0),
        (Phase.WRITING, 0),
        (Phase.WRITING, 1),
        (Phase.WRITING, 2),
    ]
    figures = last(heard)
    assert figures["load_duration"] == 3 * SECOND
    assert figures["prompt_eval_duration"] == 2 * SECOND
    assert figures["eval_duration"] == 3 * SECOND


async def test_a_model_goes_when_its_time_is_up_and_comes_back_with_a_load() -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock) as daemon:
        await generate(daemon, keep_alive="2s")
        assert daemon.residents == ["pretend:latest"]
        clock.advance(2 * SECOND)
        assert daemon.residents == []
        await generate(daemon, keep_alive=-1)
        clock.advance(1_000_000 * SECOND)
        assert daemon.residents == ["pretend:latest"]
        await generate(daemon, keep_alive=0)
        assert daemon.residents == []


async def test_an_empty_prompt_loads_and_unloads() -> None:
    async with PretendOllama() as daemon:
        assert last(await generate(daemon, prompt=""))["done_reason"] == "load"
        assert daemon.residents == ["pretend:latest"]
        assert last(await generate(daemon, prompt="", keep_alive=0))["done_reason"] == "unload"
        assert daemon.residents == []
        assert daemon.generations() == []


async def test_other_options_load_the_model_anew() -> None:
    clock = ManualClock()
    async with PretendOllama(clock=clock, load_s=3) as daemon:
        assert await load_time(daemon, clock, 512) == 3 * SECOND
        assert await load_time(daemon, clock, 512) == 0
        assert await load_time(daemon, clock, 1024) == 3 * SECOND


async def load_time(daemon: PretendOllama, clock: ManualClock, context: int) -> int:
    before = len(daemon.generations())
    with await begin(daemon, options={"num_ctx": context}) as conversation:
        await daemon.until(lambda: len(daemon.generations()) > before)
        generation = daemon.generations()[-1]
        await until(lambda: clock.sleepers or not generation.running)
        clock.advance(3 * SECOND)
        return int(last(await conversation.hear()).get("load_duration", 0))


# For whom


async def test_answers_of_one_model_wait_for_each_other_in_order() -> None:
    async with PretendOllama(faults="stall@2") as daemon, contextlib.AsyncExitStack() as stack:
        talks = []
        for number in range(3):
            talks.append(stack.enter_context(await begin(daemon, prompt=f"{number}")))
            await daemon.until(lambda: len(daemon.generations()) == len(talks))
        for number in range(3):
            await sent(daemon, number, 2)
            behind = [each.phase for each in daemon.generations()[number + 1 :]]
            assert behind == [Phase.QUEUED] * (2 - number)
            talks[number].close()
        await daemon.until(lambda: daemon.dropped == 3)


async def sent(daemon: PretendOllama, number: int, count: int) -> None:
    generation = daemon.generations()[number]
    await daemon.until(lambda: generation.sent == count)


async def test_places_let_answers_run_side_by_side() -> None:
    async with (
        PretendOllama(num_parallel=2, faults="stall@1") as daemon,
        contextlib.AsyncExitStack() as stack,
    ):
        for _ in range(3):
            stack.enter_context(await begin(daemon))
        await daemon.until(lambda: sum(each.sent for each in daemon.generations()) == 2)
        await daemon.until(lambda: len(daemon.generations()) == 3)
        phases = sorted(each.phase for each in daemon.generations())
        assert phases[1:] == [Phase.WRITING, Phase.WRITING]
        assert phases[0] in (Phase.LOADING, Phase.QUEUED)


async def test_a_connection_serves_one_request_after_the_other() -> None:
    async with PretendOllama() as daemon, contextlib.AsyncExitStack() as stack:
        conversation = stack.enter_context(await Conversation.open(daemon.port))
        for _ in range(3):
            conversation.heard = Heard()
            await conversation.say("POST", "/api/generate", json.dumps(HELLO).encode())
            assert (await conversation.hear()).end == "complete"
        conversation.heard = heard = Heard()
        for path in ("/api/version", "/api/status"):  # the second before the first is answered
            await conversation.say("GET", path, b"")
        while b"cloud" not in heard.wire:
            heard.end = None
            await conversation.hear()
        assert heard.wire.count(b"HTTP/1.1 200 OK") == 2
        assert daemon.connections == 1
        conversation.close()
        await daemon.until(lambda: daemon.connections == 0)
        assert daemon.dropped == 0


async def test_a_body_may_come_in_chunks_and_in_any_slices() -> None:
    body = json.dumps(HELLO).encode()
    cut = len(body) // 2
    parts = [b"%x\r\n%b\r\n" % (len(each), each) for each in (body[:cut], body[cut:], b"")]
    async with PretendOllama() as daemon:
        with await Conversation.open(daemon.port) as conversation:
            await conversation.say("POST", "/api/generate", b"", "Transfer-Encoding: chunked")
            for at in b"".join(parts):
                await asyncio.get_running_loop().sock_sendall(conversation.socket, bytes([at]))
            heard = await conversation.hear()
        assert daemon.requests[0].json() == HELLO
        assert heard.text() == (await generate(daemon)).text()


async def test_a_port_that_is_taken_is_named() -> None:
    async with PretendOllama() as daemon:
        await daemon.die()
        with socket.create_server(("127.0.0.1", daemon.port)), pytest.raises(PortTaken):
            await daemon.revive()


async def test_who_does_not_read_holds_the_daemon_up_and_loses_nothing() -> None:
    wordy = PretendModel("wordy", length=5000)
    asked = {"model": "wordy", "options": {"num_predict": 20_000}}
    async with PretendOllama(wordy, send_buffer_bytes=4096) as daemon:
        with await begin(daemon, **asked) as conversation:
            await daemon.until(lambda: daemon.held)
            (generation,) = daemon.generations()
            assert 0 < generation.sent < 5000
            heard = await conversation.hear()
        assert daemon.held == 0
    assert heard.end == "complete"
    assert len(heard.records()) == 5001
    assert generation.phase is Phase.DONE


async def test_whoever_leaves_without_having_read_is_noticed() -> None:
    async with PretendOllama(ENDLESS, send_buffer_bytes=4096) as daemon:
        with await begin(daemon, model="endless"):
            await daemon.until(lambda: daemon.held)
        await daemon.until(lambda: daemon.dropped == 1 and daemon.connections == 0)
        assert daemon.generations()[0].phase is Phase.DROPPED


async def test_a_fault_of_its_own_ends_the_connection_and_is_raised_at_the_end() -> None:
    with pytest.raises(ValueError, match="invalid literal"):
        async with PretendOllama() as daemon:
            heard = await generate(daemon, format={"type": "string", "minLength": "many"})
            assert (heard.wire, heard.end) == (b"", "EOF")


async def test_a_pull_finds_no_network() -> None:
    async with PretendOllama() as daemon:
        heard = await ask(daemon.port, "/api/pull", {"model": "llama3.2:3b"})
    begun, failed = heard.records()
    assert begun == {"status": "pulling manifest"}
    assert "/llama3.2/manifests/3b" in failed["error"]


# Who leaves


@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize(
    ("faults", "phase"),
    [
        ("cold_load=1h", Phase.LOADING),
        ("prompt_eval=1h", Phase.EVALUATING),
        ("stall@0", Phase.WRITING),
        ("stall@5", Phase.WRITING),
    ],
)
async def test_whoever_leaves_is_noticed_in_any_phase(faults: str, phase: Phase, how: str) -> None:
    async with PretendOllama(faults=faults) as daemon:
        conversation = await begin(daemon)
        await daemon.until(lambda: daemon.struck)
        (generation,) = daemon.generations()
        assert generation.phase is phase
        if how == "RST":
            linger = (1).to_bytes(4, "little") + (0).to_bytes(4, "little")
            conversation.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        conversation.close()
        await daemon.until(lambda: daemon.dropped == 1)
        await daemon.until(lambda: daemon.connections == 0)
        assert generation.phase is Phase.DROPPED
        assert generation.sent == (5 if faults == "stall@5" else 0)
        loaded = [] if phase is Phase.LOADING else ["pretend:latest"]
        assert daemon.residents == loaded
        daemon.faults = ""
        assert (await generate(daemon)).end == "complete"


async def test_whoever_leaves_the_queue_gives_up_the_place() -> None:
    async with PretendOllama(faults="stall@1*1") as daemon:
        first = await begin(daemon)
        await daemon.until(lambda: daemon.struck)
        second = await begin(daemon)
        await daemon.until(lambda: len(daemon.generations()) == 2)
        second.close()
        await daemon.until(lambda: daemon.dropped == 1)
        first.close()
        assert (await generate(daemon)).end == "complete"
        assert [each.phase for each in daemon.generations()] == [
            Phase.DROPPED,
            Phase.DROPPED,
            Phase.DONE,
        ]


async def test_an_answer_stops_where_its_client_left_it() -> None:
    async with PretendOllama(ENDLESS, token_s=0.0005) as daemon:
        conversation = await begin(daemon, model="endless")
        await conversation.hear(lambda heard: len(heard.records()) > 5)
        conversation.close()
        await daemon.until(lambda: daemon.dropped == 1)
        (generation,) = daemon.generations()
        assert generation.phase is Phase.DROPPED
        assert not generation.running
        await daemon.until(lambda: daemon.connections == 0)


# Going away


async def test_it_goes_away_and_comes_back_on_the_same_port() -> None:
    async with PretendOllama(faults="stall@3") as daemon:
        port = daemon.port
        conversation = await begin(daemon)
        await daemon.until(lambda: daemon.struck)
        await daemon.die()
        assert (await conversation.hear()).end == "EOF"
        assert len(conversation.heard.records()) == 3
        conversation.close()
        assert not daemon.alive
        assert daemon.connections == 0
        assert daemon.dropped == 0
        assert daemon.generations()[0].phase is Phase.BROKEN
        with pytest.raises(ConnectionRefusedError):
            await Conversation.open(port)
        await daemon.die()
        daemon.faults = ""
        await daemon.revive()
        assert daemon.port == port
        assert daemon.residents == []
        assert (await generate(daemon)).end == "complete"


async def test_it_counts_what_it_saw() -> None:
    async with PretendOllama() as daemon:
        await ask(daemon.port, "/api/version", method="GET")
        await generate(daemon, options={"num_predict": 4})
        await generate(daemon, model="nobody")
        paths = [each.path for each in daemon.requests]
        done, refused = daemon.generations()
    assert paths == ["/api/version", "/api/generate", "/api/generate"]
    assert (done.phase, refused.phase) == (Phase.DONE, Phase.REFUSED)
    assert done.sent in (3, 4)
    assert "hello" not in f"{daemon!r} {daemon.generations()!r} {daemon.requests!r}"


async def test_whoever_is_let_in_after_its_end_is_hung_up_on() -> None:
    daemon = PretendOllama()
    await daemon.revive()
    await daemon.aclose()
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        port = elsewhere.getsockname()[1]
        _, late = await loop.create_connection(
            lambda: Connection(daemon, daemon._scope), "127.0.0.1", port
        )
        await until(lambda: late.left)
        assert late.ended
        late.data_received(b"GET /api/version HTTP/1.1\r\nHost: a\r\n\r\n")
        assert late.service is None
