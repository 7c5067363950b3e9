"""Answers from memory: given where no daemon can be had, marked for what they are, and never otherwise."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ollama_adapter import Finish, OllamaAdapter, Source, StreamConfig, TokenEvent, memory
from ollama_adapter.errors import AdapterError, DaemonError, InvalidRequest, TransportError
from ollama_adapter.events import Candidate
from ollama_adapter.memory import KEPT_TOKENS
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.testing import PretendModel, PretendOllama
from tests.serving import WATCHDOG_S, collect, text_of

pytestmark = pytest.mark.anyio

PROMPT = "Tell me of the river."


@asynccontextmanager
async def pretending(
    *models: PretendModel, **limits: Any
) -> AsyncIterator[tuple[OllamaAdapter, PretendOllama]]:
    async with PretendOllama(*models) as daemon:
        config = replace(daemon.config, stream=StreamConfig(**limits))
        async with asyncio.timeout(WATCHDOG_S), OllamaAdapter(config) as adapter:
            yield adapter, daemon


async def test_without_a_daemon_an_equal_request_gets_the_answer_of_before() -> None:
    async with pretending() as (adapter, daemon):
        live = await collect(adapter.generate_stream("pretend", PROMPT, num_predict=20))
        await daemon.die()
        tokens = adapter.generate_stream("pretend", PROMPT, num_predict=20, keep_alive="1m")
        again = await collect(tokens)
    assert text_of(again) == text_of(live)
    assert [each.logprobs for each in again] == [each.logprobs for each in live]
    assert {each.source for each in again} == {Source.CACHED}
    assert {each.energy for each in again} == {tokens.statistics.mean_energy} == {None}
    assert {each.session_id for each in again} == {tokens.session_id}
    statistics = tokens.statistics
    assert statistics.finish is Finish.LENGTH
    assert statistics.cached_age_s is not None and statistics.cached_age_s > 0
    assert statistics.tokens == len(again)


async def test_with_a_daemon_nothing_comes_from_memory() -> None:
    async with pretending() as (adapter, daemon):
        for _ in range(2):
            tokens = adapter.generate_stream("pretend", PROMPT)
            assert {each.source for each in await collect(tokens)} == {Source.LIVE}
            assert tokens.statistics.cached_age_s is None
        assert len(daemon.generations()) == 2


OTHERS: dict[str, dict[str, Any]] = {
    "another prompt": {"prompt": "Tell me of the moon."},
    "another option": {"temperature": 0.5},
    "another model": {"model": "other"},
    "another system prompt": {"system": "Be brief."},
}


@pytest.mark.parametrize("difference", OTHERS)
async def test_a_request_that_differs_gets_the_named_error(difference: str) -> None:
    async with pretending(PretendModel("pretend"), PretendModel("other")) as (adapter, daemon):
        await adapter.generate("pretend", PROMPT)
        await adapter.generate("other", "Something else.")
        await daemon.die()
        asked = {"model": "pretend", "prompt": PROMPT} | OTHERS[difference]
        with pytest.raises((DaemonError, TransportError)):
            await adapter.generate(**asked)


async def test_a_daemon_that_dies_before_the_first_token_and_stays_away() -> None:
    async with pretending(resume_s=0.3) as (adapter, daemon):
        live = await adapter.generate("pretend", PROMPT)
        daemon.faults = "die@0"
        tokens = adapter.generate_stream("pretend", PROMPT)
        assert text_of(await collect(tokens)) == live.text
        assert tokens.statistics.cached_age_s is not None


async def test_a_conversation_is_remembered_too() -> None:
    messages = [{"role": "user", "content": PROMPT}]
    async with pretending() as (adapter, daemon):
        live = await adapter.chat("pretend", messages)
        await daemon.die()
        assert (await adapter.chat("pretend", messages)).text == live.text


@pytest.mark.parametrize("kept", [False, True], ids=["asked in private", "answered in private"])
async def test_private_requests_are_neither_kept_nor_answered_from_memory(kept: bool) -> None:
    async with pretending() as (adapter, daemon):
        await adapter.generate("pretend", PROMPT, private=not kept)
        await daemon.die()
        with pytest.raises((DaemonError, TransportError)):
            await adapter.generate("pretend", PROMPT, private=kept)


async def test_private_is_a_flag() -> None:
    async with pretending() as (adapter, _):
        with pytest.raises(InvalidRequest, match="private"):
            await adapter.generate("pretend", PROMPT, private="yes")
        with pytest.raises(InvalidRequest, match="private"):
            await adapter.chat("pretend", [{"role": "user", "content": "x"}], private=1)


async def test_memory_can_be_switched_off() -> None:
    async with pretending(cache_bytes=0) as (adapter, daemon):
        await adapter.generate("pretend", PROMPT)
        await daemon.die()
        with pytest.raises((DaemonError, TransportError)):
            await adapter.generate("pretend", PROMPT)


async def test_what_did_not_end_well_or_is_too_long_is_not_kept() -> None:
    async with pretending(PretendModel("pretend", length=None), resume_tries=0) as (
        adapter,
        daemon,
    ):
        daemon.faults = "eof@5*1"
        with pytest.raises(AdapterError):
            await adapter.generate("pretend", "cut")
        async with adapter.generate_stream("pretend", "stopped") as tokens:
            await anext(tokens)
        await adapter.generate("pretend", "long", num_predict=2 * KEPT_TOKENS)
        await daemon.die()
        for prompt, options in (
            ("cut", {}),
            ("stopped", {}),
            ("long", {"num_predict": 2 * KEPT_TOKENS}),
        ):
            with pytest.raises((DaemonError, TransportError)):
                await adapter.generate("pretend", prompt, **options)


async def test_an_answer_that_went_on_after_a_cut_is_kept_whole() -> None:
    async with pretending() as (adapter, daemon):
        daemon.faults = "rst@12*1"
        live = await adapter.generate("pretend", PROMPT, temperature=0)
        assert live.statistics.seams
        await daemon.die()
        assert (await adapter.generate("pretend", PROMPT, temperature=0)).text == live.text


async def test_what_all_sessions_hold_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "DRAFTED_TOKENS", 30)
    async with pretending() as (adapter, daemon):
        for prompt, tokens in (("too much", 40), ("enough", 20)):
            await adapter.generate("pretend", prompt, num_predict=tokens)
            assert adapter._backing._memory.drafted == 0
        await daemon.die()
        assert (await adapter.generate("pretend", "enough", num_predict=20)).text
        with pytest.raises((DaemonError, TransportError)):
            await adapter.generate("pretend", "too much", num_predict=40)


def test_what_is_held_of_an_answer_is_nothing_to_pythons_collector() -> None:
    """It would walk over every event that stays, beside 100 streams for tens of milliseconds."""
    draft = memory.Memory(StreamConfig(), SystemClock()).draft(private=False)
    before = len(gc.get_objects())
    for index in range(1000):
        best = [Candidate("a", -0.5), Candidate("b", -1.5)]
        draft.add([TokenEvent("a", 1, 1, "s", "m", [-0.5, -1.5], 0.5, index, candidates=best)])
    assert len(draft.parts) == 1000
    assert not any(map(gc.is_tracked, draft.parts))
    assert len(gc.get_objects()) < before + 100
