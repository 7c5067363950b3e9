"""The official Python client for Ollama, unchanged, against the pretended daemon."""

from __future__ import annotations

import json
from collections.abc import Iterator

import ollama
import pytest

from ollama_adapter.testing import BackgroundOllama, PretendOllama

MESSAGES = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def daemon() -> Iterator[BackgroundOllama]:
    with BackgroundOllama() as daemon:
        yield daemon


@pytest.fixture
def client(daemon: BackgroundOllama) -> Iterator[ollama.Client]:
    with ollama.Client(daemon.url) as client:
        yield client


def test_generate(client: ollama.Client) -> None:
    whole = client.generate("pretend", "hello", logprobs=True, top_logprobs=2)
    assert whole.done_reason == "stop"
    assert whole.logprobs is not None
    assert all(len(each.top_logprobs or ()) == 2 for each in whole.logprobs)
    parts = list(client.generate("pretend", "hello", stream=True))
    assert "".join(each.response or "" for each in parts) == whole.response
    assert parts[-1].eval_count == whole.eval_count


def test_chat(client: ollama.Client) -> None:
    whole = client.chat("pretend-thinker", MESSAGES)
    parts = list(client.chat("pretend-thinker", MESSAGES, stream=True))
    for name in ("content", "thinking"):
        assert getattr(whole.message, name)
        said = [getattr(each.message, name) or "" for each in parts]
        assert "".join(said) == getattr(whole.message, name)


def test_tools_and_formats(client: ollama.Client) -> None:
    def weather(city: str) -> str:
        """The weather of a city.

        Args:
          city: its name
        """
        return f"rain in {city}"

    called = client.chat("pretend", MESSAGES, tools=[weather])
    assert called.message.tool_calls is not None
    (call,) = called.message.tool_calls
    assert weather(**call.function.arguments).startswith("rain in ")
    formatted = client.chat("pretend", MESSAGES, format="json")
    assert isinstance(json.loads(formatted.message.content or ""), dict)


def test_embed(client: ollama.Client) -> None:
    answer = client.embed("pretend-embed", ["a", "b"])
    assert len(answer.embeddings) == 2
    assert len(client.embeddings("pretend-embed", "a").embedding) == len(answer.embeddings[0])


def test_list_ps_and_show(client: ollama.Client) -> None:
    assert "pretend:latest" in {each.model for each in client.list().models}
    client.generate("pretend", "")
    assert "pretend:latest" in {each.model for each in client.ps().models}
    assert client.show("pretend").capabilities == ["completion", "tools"]


def test_copy_and_delete(client: ollama.Client) -> None:
    client.copy("pretend", "twin")
    assert client.generate("twin", "hello").response == client.generate("pretend", "hello").response
    client.delete("twin")
    with pytest.raises(ollama.ResponseError) as refused:
        client.show("twin")
    assert refused.value.status_code == 404


def test_errors_keep_their_status(client: ollama.Client) -> None:
    for call, status in (
        (lambda: client.generate("nope", "x"), 404),
        (lambda: client.chat("pretend-embed", MESSAGES), 400),
        (lambda: client.embed("pretend", "x"), 501),
        (lambda: client.generate("pretend", "x", think=True), 400),
        (lambda: client.generate("pretend", "x", options={"num_ctx": "many"}), 500),
        (lambda: client.generate("gpt-oss:20b-cloud", "x"), 403),
        (lambda: client.pull("llama3"), 500),
    ):
        with pytest.raises(ollama.ResponseError) as refused:
            call()
        assert refused.value.status_code == status
        assert refused.value.error


def test_it_takes_a_stream_without_an_end_for_a_success(
    client: ollama.Client, daemon: BackgroundOllama
) -> None:
    """Which is why a test needs these faults."""
    daemon.faults = "no_done@5*1"
    parts = list(client.generate("pretend", "hello", stream=True))
    assert len(parts) == 5
    assert not parts[-1].done


@pytest.mark.anyio
async def test_the_asynchronous_client() -> None:
    async with PretendOllama() as daemon, ollama.AsyncClient(daemon.url) as client:
        stream = await client.generate("pretend", "hello", stream=True)
        parts = [part async for part in stream]
        assert parts[-1].done
        assert len(daemon.generations()) == 1
