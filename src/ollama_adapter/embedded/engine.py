"""The conversation with the engine: one function per thing it is asked for.

What it refuses is raised as ApiError, before the first record.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from ollama_adapter.embedded.child import Runner
from ollama_adapter.embedded.records import encode
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.embedded.wire import Reply

_LAST_FIELDS: Final = ["stop", "stop_type", "tokens_predicted", "tokens_evaluated", "timings"]

Prompt = str | list[int]


async def render(runner: Runner, messages: list[dict[str, Any]], tools: Any = None) -> str:
    """Messages in the model's own chat template."""
    plain = [{"content": "", **each} for each in messages]
    for each in plain:
        each.pop("images", None)
    body: dict[str, Any] = {"messages": plain}
    if tools:
        body["tools"] = tools
    return str((await _call(runner, "/apply-template", body))["prompt"])


async def tokenize(runner: Runner, text: str) -> list[int]:
    """The token ids of a prompt, special ones included."""
    body = {"content": text, "add_special": True, "parse_special": True}
    return list((await _call(runner, "/tokenize", body))["tokens"])


async def detokenize(runner: Runner, tokens: list[int]) -> str:
    """The text of a prompt."""
    return str((await _call(runner, "/detokenize", {"tokens": tokens}))["content"])


async def complete(
    runner: Runner, prompt: Prompt, top_logprobs: int | None, fields: Mapping[str, Any]
) -> Reply:
    """The engine's answer to a prompt, begun; `fields` are those of sampling."""
    body = {
        "prompt": prompt,
        "stream": True,
        "return_tokens": True,
        "cache_prompt": True,
        "post_sampling_probs": False,
        "n_probs": 0 if top_logprobs is None else max(1, top_logprobs),
        "response_fields": _LAST_FIELDS,
        **fields,
    }
    return await begin(runner, "/completion", body)


async def walk(runner: Runner, prompt: list[int], tokens: list[int]) -> None:
    """Make the engine read `tokens` after a prompt one by one, as it did when it wrote them.

    Read together they give numbers that are a little different, and a choice between two tokens that are
    nearly as probable then falls the other way: 1 of 25 cuts of a small quantised model.
    """
    body = {"n_predict": 0, "cache_prompt": True, "stream": False, "response_fields": ["stop"]}
    for end in range(len(tokens)):
        await _call(runner, "/completion", {**body, "prompt": prompt + tokens[:end]})


async def begin(runner: Runner, path: str, body: Mapping[str, Any]) -> Reply:
    """An answer that is read as it comes."""
    reply = await runner.open(path, encode(body))
    if reply.status != 200:
        async with reply:
            raise refusal(reply.status, await reply.read())
    return reply


async def _call(runner: Runner, path: str, body: dict[str, Any]) -> dict[str, Any]:
    status, answer = await runner.call(path, body)
    if status != 200:
        raise refusal(status, answer)
    return dict(msgspec.json.decode(answer))


def refusal(status: int, body: bytes) -> ApiError:
    """An error of the engine, passed on as Ollama does: its JSON as the text of ours."""
    return ApiError(status, body.decode("utf-8", "replace"))
