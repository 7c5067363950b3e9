"""`tier`: what this machine is, why, and what it reaches when it is measured."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ollama_adapter.config import PoolConfig
from ollama_adapter.core.tiers import judge_tier
from ollama_adapter.system.hardware import hardware
from ollama_adapter.testing import PretendModel, PretendOllama
from tests.cli.command import Machine, interrupt

pytestmark = pytest.mark.anyio

EMBEDDER = PretendModel("pretend-embed", capabilities=("embedding",))


def rows(text: str) -> dict[str, str]:
    """The first two words of a line may be its label: two spaces come after it."""
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {label.strip(): value.strip() for label, value in lines}


async def test_what_the_machine_is(machine: Machine) -> None:
    done = await machine.run("tier")
    verdict = judge_tier(hardware(), PoolConfig())
    shown = rows(done.out)
    assert (done.code, done.err) == (0, "")
    assert shown["tier"] == verdict.tier
    assert verdict.reason == f"{shown['tier']}: {shown['why']}"
    assert shown["in memory"] == f"at most {verdict.limits.resident} models"
    assert not {"configured", "daemon", "measured", "verdict"} & set(shown)


async def test_as_json(machine: Machine) -> None:
    machine.environment["OLLAMA_ADAPTER_POOL_TIER"] = "high"
    machine.environment["OLLAMA_ADAPTER_POOL_RESIDENT_MODELS"] = "3"
    (said,) = (await machine.run("tier", "--json")).lines
    assert (said["tier"], said["resident_models"], said["tps"]) == ("high", 3, [30.0, None])
    assert said["overridden"] == ["tier", "resident_models"]
    assert said["hardware"]["ram_bytes"] == hardware().ram_bytes
    assert said["advisory"] is False and "measured" not in said


async def test_what_is_configured_is_told(machine: Machine) -> None:
    machine.environment["OLLAMA_ADAPTER_POOL_TIER"] = "low"
    machine.environment["OLLAMA_ADAPTER_POOL_PARALLEL_MODELS"] = "1"
    shown = rows((await machine.run("tier")).out)
    assert shown["configured"] == "pool.tier, pool.parallel_models"
    assert shown["at work"] == "at most 1 model at a time"
    assert shown["expected"] == "5–15 tokens/s"


@pytest.mark.parametrize("setting", ["RAM_BYTES=0", "TIER=huge"])
async def test_what_cannot_be_configured(machine: Machine, setting: str) -> None:
    name, value = setting.split("=")
    machine.environment[f"OLLAMA_ADAPTER_POOL_{name}"] = value
    done = await machine.run("tier")
    assert done.code == 1
    assert "hint: " in done.err and "Traceback" not in done.err


async def test_beside_others_the_budget_is_advice(machine: Machine) -> None:
    async with PretendOllama() as daemon:
        machine.port = daemon.port
        text = (await machine.run("tier")).out
        (said,) = (await machine.run("tier", "--json")).lines
        assert not daemon.generations()
    assert "budget is advice" in text and said["advisory"] is True


async def test_measured(machine: Machine) -> None:
    """The smallest of those in memory, though there is a smaller one on the disk."""
    small = PretendModel("pretend-small", size_bytes=1 << 20)
    models = (PretendModel("pretend", size_bytes=1 << 30), small, EMBEDDER)
    async with PretendOllama(*models, token_s=0.001) as daemon:
        machine.port = daemon.port
        done = await machine.run("tier", "--measure")
        (said,) = (await machine.run("tier", "pretend", "--json")).lines
    shown = rows(done.out)
    assert done.code == 0
    assert "GiB/s, with " in shown["memory reads"] and "GB" not in done.out
    assert shown["on the cpu"].startswith("a model can write at most so many tokens/s: ")
    assert "with 1 GiB, " in shown["on the cpu"]
    assert shown["measured"].startswith("pretend-small:latest (1 MiB) wrote ")
    assert shown["measured"].endswith(" tokens/s")
    assert "by the size of memory; " in shown["verdict"]
    assert shown["verdict"].endswith(" by what pretend-small:latest wrote")
    measured: dict[str, Any] = said["measured"]
    assert (measured["model"], measured["weights_bytes"]) == ("pretend:latest", 1 << 30)
    assert measured["tps"] > 0
    assert measured["most_tps"]["2 GiB"] == pytest.approx(measured["bytes_per_s"] / (2 << 30))


async def test_what_is_in_memory_is_measured_before_what_would_have_to_be_loaded(
    machine: Machine,
) -> None:
    models = (PretendModel("big", size_bytes=1 << 30), PretendModel("small", size_bytes=1 << 20))
    async with PretendOllama(*models) as daemon:
        machine.port = daemon.port
        await machine.run("run", "big", "hello")
        (said,) = (await machine.run("tier", "--measure", "--json")).lines
    assert said["measured"]["model"] == "big:latest"


async def test_without_a_model_that_writes_memory_is_measured(machine: Machine) -> None:
    async with PretendOllama(EMBEDDER) as daemon:
        machine.port = daemon.port
        done = await machine.run("tier", "--measure")
    assert done.code == 0
    assert "none was measured" in done.err
    verdict = rows(" ".join(done.out.split("\n  ")))["verdict"]
    assert "by the size of memory; at most " in verdict


async def test_without_a_daemon_memory_is_measured(machine: Machine) -> None:
    machine.environment["OLLAMA_ADAPTER_DAEMON_MODE"] = "adopt"
    machine.port = 9  # nobody is there
    done = await machine.run("tier", "--measure")
    assert (done.code, "memory reads" in rows(done.out)) == (0, True)
    assert "note: no model was measured" in done.err
    assert (await machine.run("tier", "some-model")).code == 1


async def test_a_model_that_there_is_not(machine: Machine) -> None:
    async with PretendOllama() as daemon:
        machine.port = daemon.port
        done = await machine.run("tier", "nothing", "--json")
    assert done.code == 1
    assert done.lines[-1]["error"] == "ModelNotFound"


async def test_it_can_be_interrupted_while_it_measures(machine: Machine) -> None:
    async with PretendOllama(token_s=3600.0) as daemon:
        machine.port = daemon.port
        process = await machine.start("tier", "--measure")
        async with asyncio.timeout(60):
            await daemon.until(lambda: any(each.running for each in daemon.generations()))
            interrupt(process)
            await process.wait()
    assert process.returncode == 130


async def test_progress_is_shown_in_a_terminal(machine: Machine) -> None:
    async with PretendOllama(token_s=3600.0) as daemon:
        machine.port = daemon.port
        async with machine.terminal("tier", "--measure") as terminal:
            await terminal.until("reading memory")
            await terminal.until("pretend:latest writes")
