"""`ollama-adapter run` as a process, on a daemon that says what a script tells it to."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.events import Statistics, TokenEvent
from ollama_adapter.testing import (
    STREAM_HEAD,
    Piece,
    Script,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
    json_response,
    stream,
)
from tests.cli.command import WATCHDOG_S, Machine, finish, interrupt
from tests.embedded import daemons
from tests.serving import saying

pytestmark = pytest.mark.anyio


def logprobs(token: str) -> dict[str, Any]:
    best = {"token": token, "logprob": -0.1, "bytes": None}
    return {**best, "top_logprobs": [best, {**best, "token": "x", "logprob": -3.0}]}


def endless(head: int = 3) -> Script:
    """A few words, and then nothing until the client goes."""

    def script(_: ScriptedRequest) -> Iterable[Piece]:
        words = [chunk({"response": f"word{n} ", "done": False}) for n in range(head)]
        return [STREAM_HEAD, *words, asyncio.Event()]

    return script


async def test_piped_it_is_the_text_and_nothing_else(machine: Machine) -> None:
    async with ScriptedDaemon(saying("Hel", "lo\x1b[1m", " 日本")) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    assert (done.code, done.out, done.err) == (0, "Hello\x1b[1m 日本\n", "")
    sent = daemon.generations()[0].json()
    assert (sent["model"], sent["prompt"], sent["top_logprobs"]) == ("m:latest", "hi", 5)


async def test_statistics_go_to_stderr(machine: Machine) -> None:
    async with ScriptedDaemon(saying("a", "b\n")) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--stats")
    assert done.out == "ab\n"
    assert "2 tokens" in done.err and "kept" in done.err


async def test_one_argument_is_the_prompt_for_the_default_model(machine: Machine) -> None:
    async with ScriptedDaemon(saying("ok")) as daemon:
        machine.port = daemon.port
        assert (await machine.run("run", "hi")).code == 0
        assert (await machine.run("run", "-m", "other", "hi")).code == 0
    assert [each.json()["model"] for each in daemon.generations()] == [
        "tinydoc:latest",
        "other:latest",
    ]


@pytest.mark.parametrize("arguments", [["run"], ["run", "-"], ["run", "m", "-"]])
async def test_the_prompt_comes_from_stdin(machine: Machine, arguments: list[str]) -> None:
    async with ScriptedDaemon(saying("ok")) as daemon:
        machine.port = daemon.port
        assert (await machine.run(*arguments, stdin="zwei\nZeilen ä\n".encode())).code == 0
    assert daemon.generations()[0].json()["prompt"] == "zwei\nZeilen ä"


async def test_every_knob_reaches_the_daemon(machine: Machine) -> None:
    schema = machine.home / "schema.json"
    schema.write_text('{"type": "object"}')
    knobs = "--system S --temperature 0 --num-predict 9 --seed 3 --num-ctx 64 --no-think --raw"
    more = f"--keep-alive 1m -o top_k=5 -o stop=END --no-logprobs --format {schema}"
    async with ScriptedDaemon(saying("ok")) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", *knobs.split(), *more.split())
    assert done.code == 0, done.err
    sent = daemon.generations()[0].json()
    expected = {"temperature": 0, "num_predict": 9, "seed": 3, "num_ctx": 64, "top_k": 5}
    assert sent["options"] == expected | {"stop": ["END"]}
    assert (sent["system"], sent["think"], sent["raw"]) == ("S", False, True)
    assert (sent["keep_alive"], sent["format"]) == ("1m", {"type": "object"})
    assert sent["logprobs"] is False and "top_logprobs" not in sent


async def test_a_chat_message(machine: Machine) -> None:
    def script(_: ScriptedRequest) -> Iterable[bytes]:
        message = {"role": "assistant", "content": "hello"}
        last = {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
        }
        return [stream([{"message": message, "done": False}, last])]

    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--chat", "--system", "S")
    assert done.out == "hello\n", done.err
    assert daemon.generations()[0].json()["messages"] == [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "hi"},
    ]


async def test_json_has_every_field_of_every_event_and_ends_with_the_statistics(
    machine: Machine,
) -> None:
    records = [
        {**each, "logprobs": [logprobs(each["response"])]} for each in answer(["a", "b"])[:2]
    ]
    script: Script = lambda _: [stream([*records, *answer([])])]  # noqa: E731
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--json")
    *tokens, last = done.lines
    assert [each["token"] for each in tokens] == ["a", "b"]
    names = {field.name for field in dataclasses.fields(TokenEvent)} | {"type"}
    assert all(set(each) == names and each["type"] == "token" for each in tokens)
    assert tokens[0]["logprobs"] == [-0.1, -3.0]
    assert tokens[0]["candidates"][1] == {"token": "x", "logprob": -3.0}
    assert set(last) == {field.name for field in dataclasses.fields(Statistics)} | {"type"}
    assert (last["type"], last["finish"], last["tokens"]) == ("statistics", "stop", 2)
    assert last["guarantees"][0]["name"] == "ttft cold"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
async def test_a_signal_aborts_and_tells_how_far_it_came(
    machine: Machine, number: signal.Signals, code: int
) -> None:
    async with ScriptedDaemon(endless()) as daemon:
        machine.port = daemon.port
        process = await machine.start("run", "m", "hi")
        assert process.stdout is not None
        async with asyncio.timeout(WATCHDOG_S):
            begin = await process.stdout.readexactly(len("word0 word1 word2 "))
        interrupt(process, number)
        done = await finish(process)
        assert (done.code, begin + done.out.encode()) == (code, b"word0 word1 word2 \n")
        assert "aborted" in done.err and "3 tokens" in done.err
        assert "Traceback" not in done.err
    assert daemon.closed == 1


async def test_an_aborted_run_ends_its_json_with_the_statistics(machine: Machine) -> None:
    async with ScriptedDaemon(endless(1)) as daemon:
        machine.port = daemon.port
        process = await machine.start("run", "m", "hi", "--json")
        assert process.stdout is not None
        async with asyncio.timeout(WATCHDOG_S):
            await process.stdout.readline()
        interrupt(process)
        done = await finish(process)
    assert done.code == 130
    assert [(each["type"], each["finish"]) for each in done.lines] == [("statistics", "aborted")]


async def test_a_second_ctrl_c_is_no_fault(machine: Machine) -> None:
    machine.environment["PYTHONUNBUFFERED"] = "1"
    async with ScriptedDaemon(endless()) as daemon:
        machine.port = daemon.port
        process = await machine.start("run", "m", "hi", "--json")
        async with asyncio.timeout(WATCHDOG_S):
            assert process.stdout is not None
            await process.stdout.readline()
        interrupt(process)
        interrupt(process)  # impatience is no fault
        done = await finish(process)
    assert done.code == 130 and "Traceback" not in done.err


async def test_a_reader_that_goes_away_ends_it_quietly(machine: Machine) -> None:
    def script(_: ScriptedRequest) -> Iterable[Piece]:
        lines = chunk({"response": "a line\n", "done": False}) * 20_000  # more than a pipe holds
        return [STREAM_HEAD, lines, asyncio.Event()]

    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        process = await machine.start("run", "m", "hi")
        assert process.stdout is not None and process.stderr is not None
        async with asyncio.timeout(WATCHDOG_S):
            assert await process.stdout.readline() == b"a line\n"
            process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
            assert await process.wait() == 141
            assert await process.stderr.read() == b""


async def test_a_daemon_is_not_held_up_by_what_is_shown(machine: Machine) -> None:
    async with ScriptedDaemon(saying(*["word "] * 5000)) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    assert done.out == "word " * 5000 + "\n"


async def test_warnings_are_on_stderr(machine: Machine) -> None:
    async with ScriptedDaemon(saying("ok"), version="0.5.0") as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    assert done.out == "ok\n"
    assert "warning: Ollama 0.5.0" in done.err


async def test_embeddings(machine: Machine) -> None:
    vectors = json_response({"embeddings": [[0.5, -1.0], [0.25, 1e-7]]})
    async with ScriptedDaemon(lambda _: [vectors]) as daemon:
        machine.port = daemon.port
        plain = await machine.run("embed", "m", "a", "b")
        lines = await machine.run("embed", "m", "--json", stdin=b"a\nb\n")
    assert plain.out == "0.5 -1\n0.25 1e-07\n", plain.err
    assert [(each["index"], each["embedding"]) for each in lines.lines] == [
        (0, [0.5, -1.0]),
        (1, [0.25, 1e-7]),
    ]
    assert [each.json()["input"] for each in daemon.generations()] == [["a", "b"]] * 2


async def test_the_lines_are_json_whatever_the_model_says(machine: Machine) -> None:
    said = 'a "quoted"\n\u2028\u0085 line\x1b'
    async with ScriptedDaemon(saying(said)) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--json")
    first = json.loads(done.out.split("\n")[0])
    assert first["token"] == said


async def test_the_demonstration_model_is_asked_of_a_daemon_of_ours_that_runs(
    machine: Machine, tmp_path: Path
) -> None:
    with daemons.running(tmp_path / "store") as daemon:
        machine.environment["OLLAMA_HOST"] = f"127.0.0.1:{daemon.port}"
        done = await machine.run("run", "--num-predict", "1", "hi")
        assert done.code == 0, done.err
        assert daemon.resident() == ["tinydoc:latest"]
