"""/api/embed and its predecessor /api/embeddings."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.child import Runner
from ollama_adapter.embedded.engine import refusal, tokenize
from ollama_adapter.embedded.http import Exchange
from ollama_adapter.embedded.requests import decode_body
from ollama_adapter.embedded.service import RUNNER_DIED, Service
from ollama_adapter.embedded.settings import plan_spec
from ollama_adapter.embedded.values import ApiError, decode_options, parse_keep_alive
from ollama_adapter.embedded.wire import RunnerGone
from ollama_adapter.system.clock import monotonic_ns

NO_EMBEDDINGS: Final = "This server does not support embeddings. Start it with `--embeddings`"


async def embed(service: Service, exchange: Exchange) -> None:
    """POST /api/embed"""
    begin = monotonic_ns()
    body = decode_body(await exchange.body(), "EmbedRequest")
    given = body.get("input", [])
    inputs = [given] if isinstance(given, str) else given
    if not isinstance(inputs, list) or not all(isinstance(each, str) for each in inputs):
        raise ApiError(400, "invalid input type")
    vectors, count, load_ns = await _vectors(service, exchange, body, inputs, 501)
    size = body.get("dimensions", 0)
    answer: dict[str, Any] = {
        "model": body["model"],
        "embeddings": [_unit(each[:size] if 0 < size < len(each) else each) for each in vectors],
    }
    if vectors:
        answer |= {"total_duration": monotonic_ns() - begin, "load_duration": load_ns}
        answer["prompt_eval_count"] = count
    await exchange.value(answer)


async def embeddings(service: Service, exchange: Exchange) -> None:
    """POST /api/embeddings"""
    body = decode_body(await exchange.body(), "EmbeddingRequest")
    inputs = [body["prompt"]] if body.get("prompt") else []
    vectors, _, _ = await _vectors(service, exchange, body, inputs, 500)
    await exchange.value({"embedding": vectors[0] if vectors else []})


async def _vectors(
    service: Service, exchange: Exchange, body: dict[str, Any], inputs: list[str], status: int
) -> tuple[list[list[float]], int, int]:
    """The vectors of the inputs, the tokens evaluated, and the time the loading took."""
    text = body.get("model", "")
    model = service.find(text, f'model "{text}" not found, try pulling it first')
    header = service.header(model, text)
    options = decode_options({**model.parameters(), **body.get("options", {})})
    keep = body.get("keep_alive")
    keep_s = None if keep is None else parse_keep_alive(keep)
    if inputs and not header.number("pooling_type"):
        raise ApiError(status, NO_EMBEDDINGS)
    assert model.weights is not None
    spec = plan_spec(service.settings, model.weights, header, options, shift=True)
    begin = monotonic_ns()
    try:
        async with (
            exchange.until_gone(),
            service.scheduler.lease(model, spec, keep_s, slot=bool(inputs)) as loaded,
        ):
            load_ns = monotonic_ns() - begin
            if not inputs:
                return [], 0, load_ns
            cut = body.get("truncate", True)
            prompts = [await _tokens(loaded.runner, each, spec.n_ctx, cut=cut) for each in inputs]
            vectors = await _evaluate(loaded.runner, prompts)
            return vectors, sum(map(len, prompts)), load_ns
    except RunnerGone:
        raise ApiError(500, RUNNER_DIED) from None


async def _tokens(runner: Runner, text: str, room: int, *, cut: bool) -> list[int]:
    tokens = await tokenize(runner, text)
    if len(tokens) <= room:
        return tokens
    if not cut:
        raise ApiError(400, "the input length exceeds the context length")
    frame = await tokenize(runner, "")
    closing = frame[-1:] if len(frame) > 1 else []  # a separator at the end stays there
    return tokens[: room - len(closing)] + closing


async def _evaluate(runner: Runner, prompts: list[list[int]]) -> list[list[float]]:
    status, answer = await runner.call("/embedding", {"content": prompts})
    if status != 200:
        raise refusal(status, answer)
    entries = sorted(msgspec.json.decode(answer), key=lambda each: each["index"])
    return [list(each["embedding"][0]) for each in entries]


def _unit(vector: list[float]) -> list[float]:
    """The vector at length 1, in the digits of a 32-bit float."""
    length = math.sqrt(sum(x * x for x in vector)) or 1.0
    return [float(f"{x / length:.8g}") for x in vector]
