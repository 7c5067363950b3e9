"""From a fresh machine to live tokens with energy: the adapter, the keeper, the embedded daemon, and a
real model, with nothing scripted in between."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter import (
    Channel,
    Config,
    DaemonConfig,
    DaemonMode,
    Finish,
    Frame,
    Orchestrator,
    PoolConfig,
    State,
    StreamConfig,
)
from ollama_adapter.config import Sandbox
from ollama_adapter.core.diagnosis import Stall
from ollama_adapter.core.energy import EUMapper, profile_for
from ollama_adapter.errors import (
    ConnectFailed,
    ContextOverflow,
    ModelNotFound,
    ResponseError,
    StreamInterrupted,
)
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from tests.family import role_of
from tests.serving import collect, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("machine")]

WATCHDOG_S = 60.0
MODEL = "tinydoc"
QUESTION = "What does os.path.join do?"
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}
"""A schema that keeps the model busy: it may not end before 4000 numbers."""


def embedded(**stream: Any) -> Config:
    pool = PoolConfig(watch_s=0.0)  # a task that would outlive the test in which it begins
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED)
    return Config(daemon, pool, StreamConfig(**stream))


@pytest.fixture(scope="module")
async def running(
    machine: Path, anyio_backend: object
) -> AsyncIterator[tuple[Orchestrator, list[Frame]]]:
    frames: list[Frame] = []
    async with Orchestrator(embedded(), on_frame=frames.append) as orchestrator:
        yield orchestrator, frames


def family_of(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def all_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=WATCHDOG_S)
    assert not left, f"left behind: {left}"


async def test_the_daemon_is_in_the_best_jail_that_holds_here(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    health = await running[0].adapter.health()
    decision = levels.decide(levels.probe())
    assert health.sandbox == decision.level.words
    assert decision.level in (Level.NAMESPACES, Level.GUARD)
    if decision.level is Level.NAMESPACES:
        port = int(health.address.rpartition(":")[2])
        with pytest.raises(ConnectFailed):  # it has no port on this machine
            await dial_port(port)()


async def test_without_a_sandbox_it_says_so(machine: Path) -> None:
    config = Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox=Sandbox.NONE))
    async with Orchestrator(config) as orchestrator:
        assert (await orchestrator.adapter.health()).sandbox == "none"
        assert (await orchestrator.adapter.generate(MODEL, QUESTION, num_predict=3)).text


async def test_a_real_model_streams_tokens_with_log_probabilities_and_energy(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    orchestrator, _ = running
    tokens = orchestrator.adapter.generate_stream(MODEL, QUESTION, temperature=0, num_predict=48)
    events = await collect(tokens)
    assert len(events) > 3
    assert text_of(events).strip()
    for each in events:
        assert each.channel is Channel.TEXT
        assert each.logprobs is not None and len(each.logprobs) == 5
        assert each.logprobs == sorted(each.logprobs, reverse=True)
        assert each.logprob is not None and each.logprob <= 0.0
        assert each.candidates is not None and each.candidates[0].token == each.token
        assert each.token_ids
        assert each.energy is not None and 0.0 < each.energy <= 1.0
    statistics = tokens.statistics
    assert statistics.finish in (Finish.STOP, Finish.LENGTH)
    assert statistics.eval_count >= statistics.tokens == len(events)
    assert statistics.prompt_eval_count > 5
    ttft = statistics.guarantees[0]
    assert ttft.measured == statistics.ttft_ms


async def test_the_energy_is_that_of_the_formula(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    orchestrator, _ = running
    events = await collect(orchestrator.adapter.generate_stream(MODEL, QUESTION, num_predict=30))
    mapper = EUMapper(profile_for("fnd-002/2", orchestrator.config.energy.tier))
    for each in events:
        assert mapper.token(each.arrival_ns, each.logprobs) == each.energy


async def test_temperature_zero_says_the_same_twice_and_log_probabilities_change_nothing(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    adapter = running[0].adapter
    first = await adapter.generate(MODEL, QUESTION, temperature=0, num_predict=40)
    again = await adapter.generate(MODEL, QUESTION, temperature=0, num_predict=40, logprobs=False)
    assert first.text == again.text


async def test_the_frames_add_up_to_the_stream(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    orchestrator, frames = running
    del frames[:]
    tokens = orchestrator.adapter.generate_stream(MODEL, QUESTION, num_predict=60)
    events = await collect(tokens)
    async with asyncio.timeout(WATCHDOG_S), orchestrator.subscribe() as some:
        async for frame in some:
            shown = frame.sessions.get(tokens.session_id)
            if shown is not None and shown.state is State.DRAINED and shown.energy == 0.0:
                break
    mine = [
        each.sessions[tokens.session_id] for each in frames if tokens.session_id in each.sessions
    ]
    assert sum(each.tokens for each in mine) == len(events)
    assert next(each.first for each in mine if each.tokens) == 0
    assert [each.last for each in mine if each.tokens][-1] == len(events) - 1


async def test_chat_answers_like_generate(running: tuple[Orchestrator, list[Frame]]) -> None:
    adapter = running[0].adapter
    messages = [{"role": "user", "content": QUESTION}]
    chat = await adapter.chat(MODEL, messages, temperature=0, num_predict=30)
    generate = await adapter.generate(MODEL, QUESTION, temperature=0, num_predict=30)
    assert chat.text.strip() == generate.text.strip()


async def test_stop_generation_frees_the_model_at_once(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    adapter = running[0].adapter
    tokens = adapter.generate_stream(MODEL, QUESTION, format=ENDLESS, num_predict=100_000)
    assert (await anext(tokens)).token
    await adapter.stop_generation(tokens.session_id)
    assert await collect(tokens) == []
    assert tokens.statistics.finish is Finish.ABORTED
    async with asyncio.timeout(WATCHDOG_S):
        assert (await adapter.generate(MODEL, QUESTION, num_predict=3)).statistics.tokens


async def test_bad_requests_say_what_was_wrong(
    running: tuple[Orchestrator, list[Frame]],
) -> None:
    adapter = running[0].adapter
    with pytest.raises(ModelNotFound) as missing:
        await adapter.generate("nonexistent", "p")
    assert "ollama-adapter models" in missing.value.hint
    with pytest.raises(ContextOverflow) as overflow:
        await adapter.generate(MODEL, "word " * 3000, num_ctx=256)
    assert overflow.value.prompt_tokens > overflow.value.context_tokens >= 256
    with pytest.raises(ContextOverflow):
        await adapter.chat(MODEL, [{"role": "user", "content": "word " * 3000}], num_ctx=256)
    with pytest.raises(ResponseError, match="embedding"):
        await adapter.embed(MODEL, "text")


async def test_a_runner_that_is_killed_interrupts_its_stream_and_no_other(machine: Path) -> None:
    async with Orchestrator(embedded()) as orchestrator:
        adapter = orchestrator.adapter
        tokens = adapter.generate_stream(MODEL, QUESTION, format=ENDLESS, num_predict=100_000)
        assert (await anext(tokens)).token
        daemon = (await adapter.health()).pid
        assert daemon is not None
        (runner,) = psutil.Process(daemon).children()
        os.kill(runner.pid, signal.SIGKILL)
        with pytest.raises(StreamInterrupted) as caught:
            await collect(tokens)
        assert caught.value.tokens == tokens.statistics.tokens > 0
        assert (await adapter.generate(MODEL, QUESTION, num_predict=3)).text
    all_gone([psutil.Process(daemon)] if psutil.pid_exists(daemon) else [])


async def test_a_daemon_that_is_killed_interrupts_the_stream_and_is_replaced(
    machine: Path,
) -> None:
    async with Orchestrator(embedded()) as orchestrator:
        adapter = orchestrator.adapter
        tokens = adapter.generate_stream(MODEL, QUESTION, format=ENDLESS, num_predict=100_000)
        assert (await anext(tokens)).token
        pid = (await adapter.health()).pid
        assert pid is not None
        family = family_of(pid)
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(StreamInterrupted):
            await collect(tokens)
        all_gone(family)
        assert (await adapter.generate(MODEL, QUESTION, num_predict=3)).text
        assert (await adapter.health()).pid != pid


async def test_a_stream_that_stands_still_is_diagnosed(machine: Path) -> None:
    config = embedded(next_token_s=1, buffer_tokens=4)
    brief = replace(config.daemon, stop_grace_s=0.5)  # what stands still does not end by itself
    async with Orchestrator(replace(config, daemon=brief)) as orchestrator:
        adapter = orchestrator.adapter
        tokens = adapter.generate_stream(MODEL, QUESTION, format=ENDLESS, num_predict=100_000)
        assert (await anext(tokens)).token
        assert await adapter.diagnose(tokens.session_id) is Stall.CONSUMER_PAUSED
        waiting = adapter.generate_stream(MODEL, QUESTION)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(collect(waiting))
            while adapter.pool.is_loading(MODEL) or waiting.statistics.warm is None:
                await checkpoint()
            assert await adapter.diagnose(waiting.session_id) is Stall.QUEUED
            await waiting.stop()
        assert reader.result() == []
        pid = (await adapter.health()).pid
        assert pid is not None
        family = psutil.Process(pid).children(recursive=True)
        (runner,) = (each for each in family if role_of(each) == "runner")
        runner.suspend()
        with pytest.raises(StreamInterrupted, match=Stall.RUNNER_HUNG.value):
            await collect(tokens)


APPLICATION = """
    import asyncio, json, os, sys
    from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter

    async def main():
        adapter = OllamaAdapter(Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED)))
        schema = json.loads(sys.argv[1])
        stream = adapter.generate_stream("tinydoc", "x", format=schema, num_predict=100000)
        await anext(stream)
        print((await adapter.health()).pid, flush=True)
        async for _ in stream:
            pass

    asyncio.run(main())
"""


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_however_the_application_ends_nothing_is_left(machine: Path, ending: int) -> None:
    application = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(APPLICATION), json.dumps(ENDLESS)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert application.stdout is not None
    with application.stdout:
        daemon = psutil.Process(int(application.stdout.readline()))
        family = family_of(daemon.ppid())
        assert len(family) >= 3, "keeper, daemon, runner"
        application.send_signal(ending)
        application.wait(WATCHDOG_S)
    all_gone(family)
