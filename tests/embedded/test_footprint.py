"""What a loaded model really takes: never more than is said of it before, and not much less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.core.footprint import MIB, RUNTIME_BYTES, facts_of, need
from ollama_adapter.embedded.importer import import_gguf
from tests.embedded import daemons, ggufs

CONTEXTS = (256, 16384)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models that differ in what takes their memory: the runner, the cache, the weights."""
    root = tmp_path_factory.mktemp("models")
    for name, width, context in (("small", 64, 32768), ("wide", 768, 32768), ("short", 512, 512)):
        path = root / f"{name}.gguf"
        ggufs.write(path, width=width, context=context)
        import_gguf(path, name, root)
    return root


def loaded(daemon: daemons.Daemon, model: str, num_ctx: int) -> tuple[int, dict[str, Any]]:
    """A model that has read as long a prompt as it can: its runner's memory, and its entry in /api/ps."""
    options = {"num_ctx": num_ctx, "num_predict": 1}
    prompt = "ab " * min(num_ctx // 4, 1000)
    assert daemon.generate(prompt, model, options=options, truncate=True).status == 200
    (said,) = daemon.ask("/api/ps").json["models"]
    (runner,) = daemon.runners()
    memory = int(runner.memory_info().rss)
    daemon.generate("", model, keep_alive=0)
    return memory, said


@pytest.mark.parametrize("num_ctx", CONTEXTS)
@pytest.mark.parametrize("model", ["small", "wide", "short", "tinydoc"])
def test_no_runner_takes_more_than_was_said(models: Path, model: str, num_ctx: int) -> None:
    with daemons.running(models) as daemon:
        tags = {each["name"]: each for each in daemon.ask("/api/tags").json["models"]}
        shown = daemon.ask("/api/show", {"model": model}).json
        needed = need(facts_of(tags[f"{model}:latest"], shown), num_ctx)
        memory, said = loaded(daemon, model, num_ctx)
    assert said["context_length"] == needed.num_ctx
    assert memory <= said["size"] <= needed.total  # whose batches are Ollama's, and larger
    assert said["size"] < 2 * memory
    assert needed.total < 2 * memory + 2 * RUNTIME_BYTES
    assert needed.guess == ""


def test_what_is_said_of_two_requests_at_a_time(models: Path) -> None:
    with daemons.running(models, OLLAMA_NUM_PARALLEL="2") as daemon:
        memory, said = loaded(daemon, "wide", 16384)
    assert memory <= said["size"] < 2 * memory
    assert said["size"] > 2 * 16384 * 2 * 768 * 2 + 32 * MIB
