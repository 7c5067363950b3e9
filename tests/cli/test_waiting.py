"""What is said while a model is on its way into memory."""

from __future__ import annotations

import dataclasses

import pytest

from ollama_adapter.cli.waiting import Wait, waiting_words
from ollama_adapter.events import LoadPhase, LoadProgress
from ollama_adapter.testing import PretendModel, PretendOllama
from tests.cli.command import Machine

S = 1_000_000_000


def at(phase: LoadPhase, **fields: float) -> LoadProgress:
    return dataclasses.replace(LoadProgress("m", phase), **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("progress", "elapsed_s", "words"),
    [
        (at(LoadPhase.QUEUED, position=1), 2.0, "queued for m: 2 s"),
        (at(LoadPhase.QUEUED, position=3), 2.0, "queued for m, place 3: 2 s"),
        (at(LoadPhase.PULLING), 2.0, "pulling m"),
        (
            at(LoadPhase.PULLING, done_bytes=340_000_000, total_bytes=1_000_000_000),
            2.0,
            "pulling m: 34 % of 1.0 GB",
        ),
        (at(LoadPhase.PULLING, done_bytes=9, total_bytes=3), 2.0, "pulling m: 100 % of 3 B"),
        (at(LoadPhase.LOADING), 4.2, "loading m: 4 s"),
        (at(LoadPhase.LOADING, expected_s=12.0), 4.2, "loading m: 4 s of about 12 s"),
        (at(LoadPhase.LOADING, expected_s=4.0), 4.2, "loading m: 4 s"),
        (at(LoadPhase.READY), 4.2, ""),
    ],
)
def test_words(progress: LoadProgress, elapsed_s: float, words: str) -> None:
    assert waiting_words(progress, elapsed_s) == words


def test_time_goes_on_between_two_reports() -> None:
    wait = Wait()
    first = at(LoadPhase.LOADING, elapsed_s=2.0)
    assert wait.words(first, 100 * S) == "loading m: 2 s"
    assert wait.words(first, 103 * S) == "loading m: 5 s"
    assert wait.words(at(LoadPhase.LOADING, elapsed_s=4.0), 104 * S) == "loading m: 4 s"


def test_what_is_over_at_once_is_not_worth_a_word() -> None:
    wait = Wait()
    begun = at(LoadPhase.LOADING)
    assert wait.words(None, 0) == ""
    assert wait.words(begun, 5 * S) == wait.words(begun, 5 * S + S // 5) == ""
    assert wait.words(begun, 6 * S) == "loading m: 1 s"


@pytest.mark.anyio
@pytest.mark.parametrize("way", [(), ("--json",)])
async def test_run_says_in_a_terminal_what_it_waits_for(
    machine: Machine, way: tuple[str, ...]
) -> None:
    async with PretendOllama(PretendModel("m", length=3), load_s=1.5) as daemon:
        machine.port = daemon.port
        async with machine.terminal("run", "m", "hi", *way) as terminal:
            await terminal.until("loading m:latest: 1 s")
            assert await terminal.ended() == 0
            assert "loading" not in terminal.screen.text


@pytest.mark.anyio
async def test_piped_nothing_is_said_of_the_wait(machine: Machine) -> None:
    async with PretendOllama(PretendModel("m", length=3), load_s=1.0) as daemon:
        machine.port = daemon.port
        done = await machine.run("run", "m", "hi")
    assert done.code == 0 and done.err == "" and "loading" not in done.out
