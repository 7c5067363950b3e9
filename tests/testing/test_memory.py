"""The memory of the pretended daemon: sizes, a GPU, and who has to go, as Ollama does it."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import pytest

from ollama_adapter.testing import BackgroundOllama, Machine, Move, PretendModel, PretendOllama
from ollama_adapter.testing.model import TOKEN_BYTES
from tests.testing.wire import Heard, ask

pytestmark = pytest.mark.anyio

MIB: Final = 1 << 20
SMALL = PretendModel("small", size_bytes=100 * MIB)
LARGE = PretendModel("large", size_bytes=300 * MIB)
OTHER = PretendModel("other", size_bytes=100 * MIB)
CACHE: Final = 4096 * TOKEN_BYTES


async def load(daemon: PretendOllama, model: str, **fields: Any) -> Heard:
    return await ask(daemon.port, "/api/generate", {"model": model} | fields)


async def listed(daemon: PretendOllama) -> dict[str, dict[str, Any]]:
    heard = await ask(daemon.port, "/api/ps", method="GET")
    return {each["name"]: each for each in heard.records()[0]["models"]}


async def test_a_model_takes_its_file_and_a_cache_for_its_context() -> None:
    async with PretendOllama(SMALL) as daemon:
        await load(daemon, "small")
        whole = (await listed(daemon))["small:latest"]
        await load(daemon, "small", options={"num_ctx": 1024})
        short = (await listed(daemon))["small:latest"]
    assert (whole["size"], whole["context_length"]) == (100 * MIB + CACHE, 4096)
    assert (short["size"], short["context_length"]) == (100 * MIB + CACHE // 4, 1024)
    assert whole["size_vram"] == 0


async def test_the_usual_options_are_the_same_whether_they_are_said_or_not() -> None:
    async with PretendOllama(SMALL) as daemon:
        await load(daemon, "small")
        await load(daemon, "small", options={"num_ctx": 4096}, shift=True)
        await load(daemon, "small", options={"num_ctx": 1 << 40})
        assert daemon.moves == [(Move.LOADED, "small:latest")]


async def test_a_gpu_is_used_first_and_only_what_is_alone_is_split() -> None:
    machine = Machine(vram_bytes=300 * MIB)
    async with PretendOllama(SMALL, LARGE, machine=machine) as daemon:
        await load(daemon, "small")
        small = (await listed(daemon))["small:latest"]
        assert small["size_vram"] == small["size"]
        await load(daemon, "large")
        assert await listed(daemon) == {
            "large:latest": (large := (await listed(daemon))["large:latest"])
        }
        assert (large["size_vram"], large["size"]) == (300 * MIB, 300 * MIB + CACHE)
        assert daemon.taken_bytes == (CACHE, 300 * MIB)
        assert daemon.moves[-2:] == [(Move.EVICTED, "small:latest"), (Move.LOADED, "large:latest")]


async def test_the_idle_model_with_the_shortest_keep_alive_goes_first() -> None:
    async with PretendOllama(SMALL, LARGE, OTHER, machine=Machine(max_loaded=2)) as daemon:
        await load(daemon, "small", keep_alive="10m")
        await load(daemon, "other", keep_alive="1m")
        await load(daemon, "large")
        assert sorted(daemon.residents) == ["large:latest", "small:latest"]


async def test_where_all_are_busy_the_load_waits() -> None:
    async with PretendOllama(SMALL, OTHER, machine=Machine(max_loaded=1)) as daemon:
        daemon.faults = "stall@1*1"
        writing = asyncio.create_task(load(daemon, "small", prompt="hello", keep_alive=-1))
        await daemon.until(lambda: daemon.struck)
        waiting = asyncio.create_task(load(daemon, "other"))
        await daemon.until(lambda: len(daemon.requests) == 2)
        assert daemon.residents == ["small:latest"]
        writing.cancel()
        await waiting
        assert daemon.residents == ["other:latest"]


async def test_what_is_larger_than_the_machine_is_refused() -> None:
    machine = Machine(ram_bytes=200 * MIB)
    async with PretendOllama(SMALL, LARGE, machine=machine) as daemon:
        await load(daemon, "small")
        refused = await load(daemon, "large")
        assert refused.status == 500
        assert "requires more system memory" in refused.wire.decode()
        assert daemon.most_bytes == (100 * MIB + CACHE, 0)


async def test_a_model_grows_falls_back_and_is_unloaded_by_somebody_else() -> None:
    machine = Machine(vram_bytes=1024 * MIB)
    async with PretendOllama(SMALL, OTHER, machine=machine) as daemon:
        await load(daemon, "small")
        daemon.grow("small", MIB)
        assert daemon.taken_bytes == (0, 101 * MIB + CACHE)
        daemon.fall_back("small")
        daemon.grow("small", MIB)
        assert daemon.taken_bytes == (102 * MIB + CACHE, 0)
        daemon.unload("small")
        daemon.unload("other")
        assert daemon.residents == []
        assert daemon.moves[-1] == (Move.UNLOADED, "small:latest")


async def test_a_model_in_use_is_loaded_anew_when_its_answer_has_ended() -> None:
    async with PretendOllama(SMALL) as daemon:
        daemon.faults = "stall@1*1"
        writing = asyncio.create_task(load(daemon, "small", prompt="hello"))
        await daemon.until(lambda: daemon.struck)
        anew = asyncio.create_task(load(daemon, "small", options={"num_ctx": 512}))
        await daemon.until(lambda: len(daemon.requests) == 2)
        assert [move for move, _ in daemon.moves] == [Move.LOADED]
        writing.cancel()
        await anew
        assert [move for move, _ in daemon.moves] == [Move.LOADED, Move.UNLOADED, Move.LOADED]


def test_the_one_in_a_thread_tells_the_same() -> None:
    machine = Machine(vram_bytes=1024 * MIB)
    with BackgroundOllama(SMALL, machine=machine) as daemon:
        asyncio.run(ask(daemon.port, "/api/generate", {"model": "small"}))
        daemon.grow("small", MIB)
        assert daemon.taken_bytes == (0, 101 * MIB + CACHE)
        daemon.fall_back("small")
        assert daemon.most_bytes == (0, 100 * MIB + CACHE)
        assert daemon.taken_bytes == (101 * MIB + CACHE, 0)
        daemon.unload("small")
        assert daemon.moves == [(Move.LOADED, "small:latest"), (Move.UNLOADED, "small:latest")]
