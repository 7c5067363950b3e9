"""Another model answers for one that cannot be had; or the error says which would do, and why none does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from ollama_adapter import OllamaAdapter
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.tiers import GIB, Limits
from ollama_adapter.errors import AdapterError, BudgetExceeded, ModelLoadFailed, ModelNotFound
from ollama_adapter.events import Footprint, Source
from ollama_adapter.testing import PretendModel, PretendOllama

pytestmark = pytest.mark.anyio

ROOM = Limits(Footprint(8 * GIB), 8 * GIB, 4, 8, (1.0, None))
SMALL = PretendModel("llama3.2:1b", length=4, size_bytes=1 * GIB, capabilities=("completion",))
OTHER = PretendModel("qwen3:4b", length=4, size_bytes=3 * GIB)
LARGE = PretendModel("llama3.3:70b", length=4, size_bytes=40 * GIB)
BUNDLED = PretendModel("tinydoc", length=4, size_bytes=1 << 20)
VECTORS = PretendModel("nomic-embed-text", capabilities=("embedding",))


@asynccontextmanager
async def served(
    *models: PretendModel, faults: str = "", **pool: Any
) -> AsyncIterator[tuple[OllamaAdapter, PretendOllama]]:
    async with PretendOllama(*models, faults=faults) as daemon:
        config = replace(daemon.config, pool=PoolConfig(**pool))
        async with OllamaAdapter(config) as adapter:
            adapter.pool.surroundings.limits = lambda: ROOM
            adapter.pool.surroundings.shared = lambda: False
            yield adapter, daemon


async def test_a_missing_model_is_replaced_and_everybody_is_told() -> None:
    async with served(SMALL, OTHER, BUNDLED, VECTORS) as (adapter, daemon):
        async with adapter.generate_stream("llama3.2:3b", "hello") as stream:
            events = [event async for event in stream]
        statistics = stream.statistics
        await adapter.generate("llama3.2:3b", "hello again")
    assert {each.source for each in events} == {Source.SUBSTITUTED}
    assert {each.model for each in events} == {"llama3.2:1b"}
    assert (statistics.model, statistics.served_by) == ("llama3.2:3b", "llama3.2:1b")
    told = statistics.substitution
    assert told is not None and (told.asked, told.served) == ("llama3.2:3b", "llama3.2:1b")
    assert told.reason.startswith("it is not on this machine; instead same model, ")
    sent = [each.json()["model"] for each in daemon.requests if each.path == "/api/generate"]
    assert set(sent) == {"llama3.2:1b"}


async def test_a_model_that_was_deleted_while_in_memory_is_replaced_or_named() -> None:
    async with served(SMALL, OTHER) as (adapter, daemon):
        await adapter.pool.ensure_loaded("qwen3:4b")
        await adapter.client.delete("qwen3:4b")
        answer = await adapter.generate("qwen3:4b", "hello")
        assert answer.statistics.served_by == "llama3.2:1b"
        assert answer.statistics.substitution is not None
        await adapter.client.delete("llama3.2:1b")
        with pytest.raises(ModelNotFound):
            await adapter.generate("llama3.2:1b", "hello")
        assert not adapter.pool.at_work(), "nobody holds what is not there"
        last = [each.json()["model"] for each in daemon.requests if each.path == "/api/generate"]
    assert last.count("qwen3:4b") == 2, "once to load it, once to see that it has gone"


async def test_a_daemon_that_has_a_model_and_denies_it_is_asked_twice_and_no_more() -> None:
    denies = "404"
    async with served(OTHER, faults=denies) as (adapter, daemon):
        with pytest.raises(ModelNotFound):
            await adapter.generate("qwen3:4b", "hello")
        assert len(daemon.generations()) == 2


async def test_a_model_that_is_too_large_is_replaced_by_the_nearest_that_fits() -> None:
    async with served(SMALL, OTHER, LARGE) as (adapter, _):
        answer = await adapter.generate("llama3.3:70b", "hello")
    told = answer.statistics.substitution
    assert told is not None and told.served == "qwen3:4b"
    assert told.reason.startswith("it does not fit into memory; instead ")


async def test_what_is_beyond_the_budget_takes_no_place_where_the_budget_is_advice_either() -> None:
    async with served(SMALL, LARGE) as (adapter, _):
        adapter.pool.surroundings.shared = lambda: True
        answer = await adapter.generate("llama3.3:65b", "hello")
        assert answer.statistics.served_by == "llama3.2:1b"
        assert (await adapter.generate("llama3.3:70b", "hello")).statistics.substitution is None
        answer = await adapter.generate("llama3.3:65b", "hello")
        assert answer.statistics.served_by == "llama3.3:70b"  # it is in memory now


async def test_a_model_that_cannot_be_loaded_is_replaced() -> None:
    async with served(SMALL, OTHER, faults="load_fail*1") as (adapter, daemon):
        answer = await adapter.generate("llama3.2:1b", "hello")
        assert [each.kind for each in daemon.struck] == ["load_fail"]
    told = answer.statistics.substitution
    assert told is not None and told.reason.startswith("it could not be loaded; instead ")
    assert answer.statistics.served_by == "qwen3:4b" and answer.text


async def test_a_substitute_that_fails_gives_way_to_the_next_one() -> None:
    async with served(SMALL, OTHER, faults="load_fail*1") as (adapter, _):
        answer = await adapter.generate("llama3.2:3b", "hello")
    assert answer.statistics.served_by == "qwen3:4b"


async def refused(adapter: OllamaAdapter, model: str, **keywords: Any) -> AdapterError:
    with pytest.raises(AdapterError) as caught:
        await adapter.generate(model, "hello", **keywords)
    return caught.value


async def test_switched_off_the_error_names_those_that_would_do() -> None:
    async with served(SMALL, OTHER, LARGE, substitute=False) as (adapter, daemon):
        missing = await refused(adapter, "llama3.2:3b")
        large = await refused(adapter, "llama3.3:70b")
        daemon.faults = "load_fail*1"
        broken = await refused(adapter, "llama3.2:1b")
    assert isinstance(missing, ModelNotFound) and isinstance(large, BudgetExceeded)
    assert isinstance(broken, ModelLoadFailed)
    assert missing.hint.startswith("these would do: llama3.2:1b (same model, ")
    assert large.hint.startswith("these would do: qwen3:4b (") and "70b" not in large.hint[:60]
    assert broken.hint.startswith("these would do: qwen3:4b (same family, ")


async def test_where_none_does_the_error_says_why() -> None:
    async with served(SMALL, LARGE, BUNDLED, VECTORS) as (adapter, daemon):
        error = await refused(adapter, "llava:7b", images=[b"\x89PNG"])
        assert isinstance(error, ModelNotFound)
        for words in (
            "no model here can take its place: ",
            "llama3.2:1b (it lacks vision)",
            "nomic-embed-text:latest (it lacks completion and vision)",
            "tinydoc:latest (a demonstration that knows nothing",
        ):
            assert words in error.hint
        daemon.faults = "load_fail"
        error = await refused(adapter, "llama3.2:3b")
        assert error.hint.startswith("llama3.2:1b could not be had either; these would do: ")
        assert not any(each.sent for each in daemon.generations())


async def test_the_demonstration_never_answers_for_another_model() -> None:
    async with served(BUNDLED, LARGE) as (adapter, daemon):
        error = await refused(adapter, "llama3.2:3b")
        assert "it answers only where it is asked for by name" in error.hint
        assert "llama3.3:70b (its file has 40.0 GiB" in error.hint
        assert (await adapter.generate("tinydoc", "hello")).statistics.substitution is None
        assert len(daemon.generations()) == 1


async def test_vectors_and_token_ids_are_no_other_models() -> None:
    other = PretendModel("mxbai-embed-large", capabilities=("embedding",))
    async with served(SMALL, VECTORS, other) as (adapter, _):
        with pytest.raises(ModelNotFound):
            await adapter.embed("all-minilm", "hello")
        error = await refused(adapter, "llama3.2:3b", context=[1, 2, 3])
        assert "it lacks the vocabulary of the tokens in the request" in error.hint


async def test_a_daemon_that_does_not_list_its_models_leaves_the_error_as_it_is() -> None:
    async with served(SMALL) as (adapter, daemon):
        daemon.faults = "503"
        with pytest.raises(AdapterError):
            await adapter.generate("llama3.2:3b", "hello")
