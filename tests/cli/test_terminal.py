"""The command in a terminal: the live view, Ctrl-C, narrow and dumb ones, a conversation."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import pytest

from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
)
from tests.cli.command import Machine
from tests.serving import saying

pytestmark = pytest.mark.anyio

LONG = [f"line {number} of a long answer\n" for number in range(60)]


class Held:
    """Says its first words at once and the rest when it is told to."""

    def __init__(self, *words: str) -> None:
        self.words = words
        self.go_on = asyncio.Event()

    def __call__(self, request: ScriptedRequest) -> Iterable[Piece]:
        first, *rest = answer(self.words)
        return [STREAM_HEAD, chunk(first), self.go_on, *map(chunk, rest), STREAM_END]


async def test_the_live_view_and_what_remains_of_it(machine: Machine) -> None:
    script = Held("Hello", ", 日本 world")
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi") as terminal:
            await terminal.until("FLOWING")
            await terminal.until("1 tokens")
            assert terminal.screen.text.splitlines()[0] == "Hello"
            assert not terminal.echoes()
            script.go_on.set()
            assert await terminal.ended() == 0
            text = terminal.screen.text
            assert text.startswith("Hello, 日本 world\n\nanswer finished · 2 tokens")
            assert "FLOWING" not in text and "kept" in text
            assert terminal.echoes()
            assert b"\x1b[?25l" not in terminal.raw  # the cursor is never hidden


async def test_an_answer_longer_than_the_screen_remains_whole(machine: Machine) -> None:
    async with ScriptedDaemon(saying(*LONG)) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi", height=10) as terminal:
            assert await terminal.ended() == 0
            assert terminal.screen.text.startswith("".join(LONG))


async def test_ctrl_c_ends_it_and_leaves_the_terminal_as_it_was(machine: Machine) -> None:
    script = Held("Hello")
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi") as terminal:
            await terminal.until("FLOWING")
            terminal.type("\x03")
            assert await terminal.ended() == 130
            assert terminal.screen.text.startswith("Hello\n\nanswer aborted · 1 token ")
            assert terminal.echoes()
    assert daemon.closed == 1


@pytest.mark.parametrize("width", [20, 5, 2])
async def test_narrow_terminals(machine: Machine, width: int) -> None:
    async with ScriptedDaemon(
        saying("A text that is longer ", "than the terminal is wide")
    ) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi", width=width, height=8) as terminal:
            assert await terminal.ended() == 0
            first = terminal.screen.text.splitlines()[0]
            assert first == "A text that is longer than the terminal is wide"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("TERM", "dumb"), ("NO_COLOR", "1"), ("PYTHONIOENCODING", "ascii")),
        *(("COLUMNS", each) for each in ("0", "-5", "wide", "²", "")),
    ],
)
async def test_terminals_that_can_do_less(machine: Machine, name: str, value: str) -> None:
    machine.environment[name] = value
    async with ScriptedDaemon(saying("so ", "it is")) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi") as terminal:
            assert await terminal.ended() == 0
            assert terminal.screen.text.startswith("so it is\n")
            assert "2 tokens" in terminal.screen.text
            if name == "TERM":
                assert b"\x1b" not in terminal.raw
            if name == "NO_COLOR":
                assert b"38;" not in terminal.raw and b"48;" not in terminal.raw
            if name == "PYTHONIOENCODING":
                assert terminal.raw.isascii()


async def test_an_error_in_a_terminal_leaves_no_line_behind(machine: Machine) -> None:
    async with ScriptedDaemon(saying("never")) as daemon:
        machine.port = daemon.port
    async with machine.terminal("run", "m", "hi") as terminal:
        assert await terminal.ended() == 1
        assert terminal.screen.text.lstrip().startswith("error: nothing listens on")
        assert "starting" not in terminal.screen.text


async def test_without_a_prompt_there_is_a_hint(machine: Machine) -> None:
    async with machine.terminal("run") as terminal:
        assert await terminal.ended() == 2
        assert "there is no prompt" in terminal.screen.text


async def test_a_conversation_remembers(machine: Machine) -> None:
    def script(request: ScriptedRequest) -> Iterable[Piece]:
        count = len(json.loads(request.body)["messages"])
        records: list[Piece] = [STREAM_HEAD]
        message = {"message": {"role": "assistant", "content": f"I know {count}"}, "done": False}
        last = {
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "stop",
        }
        records += [chunk(message)]
        if count == 4:
            records.append(asyncio.Event())  # until it is aborted
        return [*records, chunk(last), STREAM_END]

    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "-m", "m", "--chat", "--system", "S") as terminal:
            await terminal.until(">>>")
            terminal.type("one\n")
            await terminal.until("answer finished")
            terminal.type("two\n")
            await terminal.until("I know 4")
            await terminal.until("FLOWING")
            terminal.type("\x03")
            await terminal.until("answer aborted")
            terminal.type("three\n")
            await terminal.until("I know 6")
            terminal.type("/bye\n")
            assert await terminal.ended() == 0
    said = [each["content"] for each in daemon.generations()[-1].json()["messages"]]
    assert said == ["S", "one", "I know 2", "two", "I know 4", "three"]


@pytest.mark.parametrize(("key", "code"), [("\x04", 0), ("\x03", 130)])
async def test_a_conversation_ends_at_its_prompt(machine: Machine, key: str, code: int) -> None:
    async with ScriptedDaemon(saying("never")) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "--chat") as terminal:
            await terminal.until(">>>")
            terminal.type(key)
            assert await terminal.ended() == code


@pytest.mark.parametrize("answer", ["n\n", "\x04"])
async def test_removing_asks_first(machine: Machine, answer: str) -> None:
    async with ScriptedDaemon(saying("never")) as daemon:
        machine.port = daemon.port
        async with machine.terminal("rm", "m") as terminal:
            await terminal.until("[y/N]")
            terminal.type(answer)
            assert await terminal.ended() == 0
            assert "\nnote: nothing was removed" in terminal.screen.text
            assert "Traceback" not in terminal.screen.text
    assert daemon.requests == []
