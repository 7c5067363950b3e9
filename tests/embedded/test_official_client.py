"""The official Python client for Ollama, unchanged, against the embedded daemon."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import ollama
import pytest

from tests.embedded.daemons import Daemon

ENDLESS = {"type": "string", "minLength": 4000}


@pytest.fixture
def client(daemon: Daemon) -> Iterator[ollama.Client]:
    with ollama.Client(f"http://{daemon.address}") as client:
        yield client


def test_generate(client: ollama.Client) -> None:
    whole = client.generate("tiny", "hello", options={"num_predict": 4}, format=ENDLESS)
    assert whole.done
    assert whole.done_reason == "length"
    assert whole.eval_count == 4
    parts = list(
        client.generate("tiny", "hello", options={"num_predict": 4}, format=ENDLESS, stream=True)
    )
    assert parts[-1].done
    assert "".join(each.response or "" for each in parts)


def test_logprobs(client: ollama.Client) -> None:
    answer = client.generate(
        "tiny", "x", logprobs=True, top_logprobs=2, options={"num_predict": 3}, format=ENDLESS
    )
    assert answer.logprobs
    for entry in answer.logprobs:
        assert entry.logprob <= 0
        assert entry.top_logprobs is not None
        assert len(entry.top_logprobs) == 2


def test_chat(client: ollama.Client) -> None:
    messages = [{"role": "user", "content": "hello"}]
    options = {"num_predict": 4}
    whole = client.chat("tiny", messages, options=options, format=ENDLESS)
    assert whole.message.content
    parts = list(client.chat("tiny", messages, options=options, format=ENDLESS, stream=True))
    assert "".join(each.message.content or "" for each in parts)
    assert parts[-1].done_reason == "length"


@pytest.mark.anyio
async def test_the_asynchronous_client(daemon: Daemon) -> None:
    async with ollama.AsyncClient(f"http://{daemon.address}") as client:
        stream = await client.generate(
            "tiny", "hello", options={"num_predict": 3}, format=ENDLESS, stream=True
        )
        parts = [part async for part in stream]
        assert parts[-1].done


def test_embed(client: ollama.Client) -> None:
    answer = client.embed("embed", ["a", "b"])
    assert len(answer.embeddings) == 2
    assert len(client.embeddings("embed", "a").embedding) == len(answer.embeddings[0])


def test_list_ps_and_show(client: ollama.Client) -> None:
    names = {each.model for each in client.list().models}
    assert {"tiny:latest", "tinydoc:latest"} <= names
    client.generate("tiny", "")
    assert "tiny:latest" in {each.model for each in client.ps().models}
    shown = client.show("tiny")
    assert shown.details is not None
    assert shown.details.family == "llama"
    assert shown.capabilities == ["completion"]
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 512


def test_create_copy_and_delete(client: ollama.Client, files: Path) -> None:
    path = files / "bare.gguf"
    digest = client.create_blob(path)
    assert digest == "sha256:" + hashlib.sha256(path.read_bytes()).hexdigest()
    lines = [
        each.status
        for each in client.create("fresh", files={"bare.gguf": digest}, system="be", stream=True)
    ]
    assert lines[0] == "parsing GGUF"
    assert lines[-1] == "success"
    client.create("child", from_="fresh", parameters={"num_predict": 2, "stop": ["x"]})
    assert client.show("child").parameters
    assert client.generate("child", "a", raw=True, format=ENDLESS).eval_count == 2
    client.copy("child", "twin")
    assert client.show("twin").modelfile
    for name in ("twin", "child", "fresh"):
        client.delete(name)
    with pytest.raises(ollama.ResponseError) as refused:
        client.show("twin")
    assert refused.value.status_code == 404


def test_errors_keep_their_status(client: ollama.Client) -> None:
    for call, status in (
        (lambda: client.generate("nope", "x"), 404),
        (lambda: client.chat("embed", [{"role": "user", "content": "x"}]), 400),
        (lambda: client.embed("tiny", "x"), 501),
        (lambda: client.generate("tiny", "x", think=True), 400),
        (lambda: client.generate("tiny", "x", options={"num_ctx": "many"}), 500),
        (lambda: client.generate("gpt-oss:20b-cloud", "x"), 403),
        (lambda: client.pull("llama3"), 500),
    ):
        with pytest.raises(ollama.ResponseError) as refused:
            call()
        assert refused.value.status_code == status
        assert refused.value.error
