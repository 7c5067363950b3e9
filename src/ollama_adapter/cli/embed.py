"""`embed`: texts to vectors."""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Sequence
from typing import Any

from ollama_adapter.cli import asking
from ollama_adapter.cli.output import print_json, stdout
from ollama_adapter.config import Config
from ollama_adapter.core.requests import embed_request
from ollama_adapter.core.vocabulary import default_keep_alive
from ollama_adapter.errors import InvalidRequest
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings


def embed(model: str, texts: Sequence[str], *, as_json: bool) -> Coroutine[Any, Any, None]:
    config = settings.load_config()
    if not texts and not sys.stdin.isatty():
        texts = asking.decode(sys.stdin.buffer.read(), "the standard input").splitlines()
    for text in (model, *texts):
        asking.check_text(text, "an argument")
    if not texts or not all(texts):
        raise InvalidRequest(
            "there is no text, or an empty one",
            hint="ollama-adapter embed MODEL 'a text' 'another'",
        )
    keep_alive = default_keep_alive(config.pool.keep_alive)
    embed_request(model, texts, {}, keep_alive)  # said before a daemon starts
    return _embed(config, model, list(texts), as_json)


async def _embed(config: Config, model: str, texts: list[str], as_json: bool) -> None:
    output = stdout()
    async with Orchestrator(config) as orchestrator:
        answer = await orchestrator.adapter.embed(model, texts)
    for index, vector in enumerate(answer.vectors):
        if as_json:
            print_json({"index": index, "model": answer.model, "embedding": vector})
        else:
            await output.write(" ".join(f"{each:.7g}" for each in vector) + "\n")
