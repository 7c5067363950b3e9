"""A real Ollama, spawned at every level of the jail: the contract, the abort, log probabilities, the level.

What these need is on docs/development.md. Nothing here is skipped: what is missing is a failure that says so.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, Finish, OllamaAdapter
from ollama_adapter.config import Sandbox
from ollama_adapter.errors import ModelNotFound
from ollama_adapter.system import settings
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.listeners import listener_uids

pytestmark = [pytest.mark.anyio, pytest.mark.live]
MODEL = os.environ.get("LIVE_MODEL", "")
ENDLESS = "Count from one to a million, and write every number as a word."
LEVELS = (
    [Level.NAMESPACES, Level.GUARD, Level.PARTIAL, Level.NONE]
    if sys.platform == "linux"
    else [Level.NONE]
)


@pytest.fixture(params=LEVELS)
def level(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Level:
    """The level that this test gets: the better ones are declared missing."""
    wanted: Level = request.param
    facts = levels.probe()
    better = LEVELS[: LEVELS.index(wanted)]
    without = "left out by the test"
    less = dataclasses.replace(
        facts,
        namespaces=without if Level.NAMESPACES in better else facts.namespaces,
        notify=without if Level.GUARD in better else facts.notify,
    )
    monkeypatch.setattr(levels, "probe", lambda: less)
    return wanted


@pytest.fixture
async def adapter(level: Level) -> AsyncIterator[OllamaAdapter]:
    own = settings.load_config().daemon
    sandbox = {Level.PARTIAL: Sandbox.PARTIAL, Level.NONE: Sandbox.NONE}.get(
        level, Sandbox.ENFORCED
    )
    daemon = DaemonConfig(
        mode=DaemonMode.OLLAMA,
        ollama_path=own.ollama_path,
        models_dir=own.models_dir,
        sandbox=sandbox,
    )
    async with OllamaAdapter(Config(daemon=daemon)) as adapter:
        yield adapter


@pytest.fixture
async def model(adapter: OllamaAdapter) -> str:
    """The one that was named, else the smallest that completes text."""
    if MODEL:
        return MODEL
    tags = await adapter.client.tags()
    able = [each for each in tags if "completion" in each.get("capabilities", ["completion"])]
    local = [each for each in able if not each.get("remote_host")]
    assert local, "no model is in the store: `ollama pull` one, or set LIVE_MODEL"
    return str(min(local, key=lambda each: int(each["size"]))["name"])


async def test_the_contract(adapter: OllamaAdapter, model: str) -> None:
    await adapter.ensure_running()
    assert await adapter.health_check()
    async with adapter.generate_stream(model, "Say hello.", num_predict=16, seed=1) as stream:
        events = [event async for event in stream]
    assert events
    assert [each.index for each in events] == list(range(len(events)))
    assert all(each.energy is not None and 0.0 <= each.energy <= 1.0 for each in events)
    assert stream.statistics.finish in (Finish.STOP, Finish.LENGTH)
    assert stream.statistics.eval_count >= len(events)
    question = [{"role": "user", "content": "Say hello."}]
    answer = await adapter.chat(model, question, num_predict=16)
    assert answer.text or answer.thinking
    with pytest.raises(ModelNotFound) as caught:
        await adapter.generate("no-such-model-anywhere", "x")
    assert caught.value.hint


async def test_an_abort_ends_it_quietly_and_the_next_is_served(
    adapter: OllamaAdapter, model: str
) -> None:
    for seed in range(10):  # a model may come to an end before it is stopped
        stream = adapter.generate_stream(model, ENDLESS, num_predict=-1, seed=seed)
        async for event in stream:
            if event.index == 2:
                await adapter.stop_generation(stream.session_id)
        if stream.statistics.finish is Finish.ABORTED:
            break
    assert stream.statistics.finish is Finish.ABORTED
    answer = await adapter.generate(model, "Say hello.", num_predict=4)
    assert answer.statistics.finish in (Finish.STOP, Finish.LENGTH)


async def test_log_probabilities_come_with_every_token(adapter: OllamaAdapter, model: str) -> None:
    async for event in adapter.generate_stream(model, "Say hello.", num_predict=8, top_logprobs=5):
        assert event.logprob is not None
        assert event.logprob <= 0.0
        assert event.candidates is not None
        assert len(event.candidates) == 5
        found = [each.logprob for each in event.candidates]
        assert found == sorted(found, reverse=True)


def filters(pid: int) -> int:
    """How many filters of system calls a process is bound to; in a container it is one from the start."""
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("Seccomp_filters:") + 1])


async def test_the_level_is_in_force_and_nothing_is_left(
    level: Level, adapter: OllamaAdapter, model: str
) -> None:
    health = await adapter.health()
    assert health.origin == "spawned"
    assert health.sandbox == level.words
    await adapter.generate(model, "Say hello.", num_predict=2)
    assert health.pid is not None
    daemon = psutil.Process(health.pid)
    family = [daemon, *daemon.children(recursive=True)]
    assert len(family) > 1, "it has no runner"
    if sys.platform == "linux":
        jailed = [filters(each.pid) > filters(os.getpid()) for each in family]
        assert set(jailed) == {level is not Level.NONE}, f"filters of system calls at {level}"
        ports = listener_uids(adapter.daemon.port)
        assert bool(ports) is (level is not Level.NAMESPACES), "a port of this machine's"
    await adapter.aclose()
    _, left = psutil.wait_procs(family, timeout=20)
    assert not left
