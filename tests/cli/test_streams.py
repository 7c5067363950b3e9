"""A stream that is cut while the command shows it: what is seen meanwhile, and what is told at the end."""

from __future__ import annotations

import asyncio
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
    stream,
)
from tests.cli.command import Machine
from tests.cli.test_errors import fault

pytestmark = pytest.mark.anyio

WORDS = ("It ", "flows ", "to ", "the ", "sea.")


class CutOnce:
    """Its first answer ends after two words; the second one is whole, once it is let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.asked = 0

    def __call__(self, request: ScriptedRequest) -> Iterable[Piece]:
        self.asked += 1
        first, second, *rest = map(chunk, answer(WORDS))
        if self.asked == 1:
            return [STREAM_HEAD, first, second, STREAM_END]
        return [STREAM_HEAD, self.go_on, first, second, *rest, STREAM_END]


def dying(words: Iterable[str]) -> list[Piece]:
    """An answer whose runner dies, as Ollama tells it."""
    said = answer(words)[:-1]
    lost = {"error": "an error was encountered while running the model: unexpected EOF"}
    return [stream([*said, lost])]


async def test_piped_a_stream_that_went_on_is_whole_and_a_note_says_so(machine: Machine) -> None:
    script = CutOnce()
    script.go_on.set()
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--temperature", "0")
    assert (done.code, done.out) == (0, "".join(WORDS) + "\n"), done.err
    assert done.err.startswith(
        "note: the answer was interrupted and went on: after 2 tokens "
        "(the answer ended without its last record) · by a second run"
    )
    assert len(done.err.splitlines()) == 1


async def test_the_json_tells_the_seam_and_where_each_token_is_from(machine: Machine) -> None:
    script = CutOnce()
    script.go_on.set()
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        *tokens, last = (await machine.run("run", "m", "hi", "--temperature", "0", "--json")).lines
    assert [(each["source"], each["way"]) for each in tokens] == (
        [("live", None)] * 2 + [("replayed", "rerun")] * 3
    )
    (seam,) = last["seams"]
    assert (seam["index"], seam["way"]) == (2, "rerun")
    assert seam["reason"] == "the answer ended without its last record"
    assert last["cached_age_s"] is None


async def test_the_live_view_says_why_it_stands_and_the_account_how_it_went_on(
    machine: Machine,
) -> None:
    script = CutOnce()
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi", "--temperature", "0", width=100) as terminal:
            await terminal.until("STALLING   interrupted, going on: the answer ended without")
            assert terminal.screen.text.startswith("It flows\n")
            assert "tok/s" not in terminal.screen.text
            script.go_on.set()
            assert await terminal.ended() == 0
            text = terminal.screen.text
    assert text.startswith("".join(WORDS) + "\n\nanswer  finished · 5 tokens")
    assert "resumed after 2 tokens (the answer ended without its last record)" in text
    assert "interrupted, going on" not in text


async def test_ctrl_c_while_it_goes_on_ends_it_at_once(machine: Machine) -> None:
    script = CutOnce()
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi", "--temperature", "0") as terminal:
            await terminal.until("interrupted, going on")
            terminal.type("\x03")
            assert await terminal.ended() == 130
            assert terminal.screen.text.startswith("It flows\n\nanswer aborted · 2 tokens")
            assert terminal.echoes()


async def test_what_cannot_go_on_says_why_of_every_way_and_what_to_do(machine: Machine) -> None:
    async with ScriptedDaemon(lambda _: dying(WORDS[:3])) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi", "--format", "json")
        lines = (await machine.run("run", "m", "hi", "--format", "json", "--json")).lines
    fault(done, "after 3 tokens, and could not go on", "hint: with --temperature 0 or a --seed")
    assert done.out == "It flows to \n"
    for way in ("by token ids: only the embedded", "by a second run: ", "from its text: format"):
        assert f"\n  {way}" in done.err
    error = lines[-1]
    assert (error["type"], error["error"]) == ("error", "StreamInterrupted")
    assert (error["reason"], error["tokens"]) == ("the process that ran the model died", 3)
    assert len(error["refusals"]) == 3


async def test_a_limit_is_named_as_the_variable_that_sets_it(machine: Machine) -> None:
    def script(_: ScriptedRequest) -> Iterable[Piece]:
        return [STREAM_HEAD, chunk(answer(WORDS)[0]), asyncio.Event()]

    machine.environment["OLLAMA_ADAPTER_STREAM_NEXT_TOKEN_S"] = "0.1"
    machine.environment["OLLAMA_ADAPTER_STREAM_RESUME_TRIES"] = "0"
    async with ScriptedDaemon(script) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    fault(done, "no next token within 0.1 s", "OLLAMA_ADAPTER_STREAM_NEXT_TOKEN_S is the limit")
