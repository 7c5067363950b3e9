"""Everything open inside, everything closed outside, and the frames add up to the stream."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, Frame, Orchestrator, State
from ollama_adapter.errors import AdapterError, DaemonNotFound
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.testing import (
    STREAM_END,
    STREAM_HEAD,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    chunk,
)
from tests.serving import WATCHDOG_S, collect, config_for

pytestmark = pytest.mark.anyio


async def until_drained(orchestrator: Orchestrator) -> None:
    async with asyncio.timeout(WATCHDOG_S):
        async with orchestrator.subscribe() as frames:
            async for frame in frames:
                if frame.state is State.DRAINED and frame.energy == 0.0:
                    return


async def test_the_sum_of_the_frames_is_the_stream() -> None:
    async def pause() -> None:
        async with orchestrator.subscribe() as some:
            await anext(some)

    received: list[Frame] = []
    gates = [asyncio.Event() for _ in range(4)]

    def script(_: ScriptedRequest) -> list[Piece]:
        pieces: list[Piece] = [STREAM_HEAD]
        for number, gate in enumerate(gates):
            word = chunk({"response": f"w{number} ", "done": False})
            pieces += [gate, word, word]
        return [*pieces, b"".join(map(chunk, answer([]))) + STREAM_END]

    async with ScriptedDaemon(script) as daemon:
        orchestrator = Orchestrator(config_for(daemon), on_frame=received.append)
        profile = orchestrator.adapter._profile
        orchestrator.adapter._profile = replace(profile, half_life_ms=50)  # drained in no time
        async with orchestrator, asyncio.timeout(WATCHDOG_S):
            tokens = orchestrator.adapter.generate_stream("m", "p")
            events = []
            for gate in gates:
                gate.set()
                events += [await anext(tokens), await anext(tokens)]
                await pause()
            events += await collect(tokens)
            await until_drained(orchestrator)
    assert len(events) == 8
    assert sum(each.new_tokens for each in received) == 8
    generated = sum(each.energy_generated for each in received)
    assert generated == pytest.approx(sum(each.energy or 0.0 for each in events))
    assert received[-1].total_energy == pytest.approx(generated)
    assert orchestrator.frames == len(received)
    assert orchestrator.last_frame is received[-1]
    seen = [each.sessions[tokens.session_id] for each in received]
    spans = [(each.first, each.last) for each in seen if each.first is not None]
    assert [first for first, _ in spans] == [0, *[(last or 0) + 1 for _, last in spans[:-1]]]
    assert sum(each.skipped for each in received) >= 0


async def test_when_opening_fails_nothing_is_left_open() -> None:
    config = Config(daemon=DaemonConfig(port=find_free_port(), mode=DaemonMode.ADOPT))
    orchestrator = Orchestrator(config)
    with pytest.raises(DaemonNotFound):
        async with orchestrator:
            raise AssertionError("it must not open")
    with pytest.raises(AdapterError, match="closed"):
        _ = orchestrator.adapter.generate_stream("m", "p")
    await orchestrator.aclose()


async def test_closing_is_idempotent() -> None:
    async with ScriptedDaemon(lambda _: []) as daemon:
        async with Orchestrator(config_for(daemon)) as orchestrator:
            assert "0 sessions" in repr(orchestrator)
        await orchestrator.aclose()
