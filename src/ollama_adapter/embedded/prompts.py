"""What the engine is to continue: the prompt of a job, cut to the context, and what is generated already.

A continuation has the prompt that its first part had; the ids of that part stand after it. Where the two
do not fit into the context together the engine has forgotten a part of them the first time: refused, since
that cannot be done again in the same way.
"""

from __future__ import annotations

from typing import Any, Final

from ollama_adapter.embedded import engine
from ollama_adapter.embedded.child import Runner
from ollama_adapter.embedded.engine import Prompt
from ollama_adapter.embedded.service import Job
from ollama_adapter.embedded.settings import grammar, sampling, shortened, window
from ollama_adapter.embedded.tools import chat_body
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.embedded.wire import Reply

TOO_LONG: Final = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
TOO_FAR: Final = (
    "continue_tokens and the prompt fill the context: what comes after cannot be continued exactly"
)
CUT_CHARACTER: Final = (
    "continue_tokens ends inside a character: leave out the ids of its first part"
)
NO_VOCABULARY: Final = (
    "continue_tokens cannot be had with this model: its vocabulary is not readable"
)


async def begin(job: Job, runner: Runner) -> Reply:
    """The engine's answer to a job, begun. ApiError where it refuses."""
    fields = sampling(job.options, job.spec.n_ctx)
    if job.body.get("tools"):  # only the chat endpoint knows about them
        body = chat_body(messages(job), job.body["tools"], fields)
        return await engine.begin(runner, "/v1/chat/completions", body)
    prompt = await fit(job, runner, await whole(job, runner))
    if job.continued:
        prompt = await _continued(job, runner, prompt, fields)
    if job.asked.schema is not None:
        fields["grammar"] = grammar(job.asked.schema)
    return await engine.complete(runner, prompt, job.asked.top_logprobs, fields)


async def rendered(job: Job, runner: Runner) -> str:
    """The prompt as text, before any cut."""
    prompt = await whole(job, runner)
    return prompt if isinstance(prompt, str) else await engine.detokenize(runner, prompt)


async def whole(job: Job, runner: Runner) -> Prompt:
    """What the engine shall continue, before any cut."""
    body = job.body
    if "prompt_tokens" in body:
        return [int(each) for each in body["prompt_tokens"]]
    if not job.asked.chat and (body.get("raw") or not job.has_template):
        return str(body["prompt"])
    given = messages(job)
    if given[-1].get("role") == "assistant" and not job.continued:
        job.answer.prefill = str(given[-1].get("content", ""))
    return await engine.render(runner, given, body.get("tools"))


def messages(job: Job) -> list[dict[str, Any]]:
    """The messages of a request, after those stored with the model and its system prompt."""
    body = job.body
    given = list(body.get("messages", [])) if job.asked.chat else []
    if not job.asked.chat:
        given = [{"role": "user", "content": body["prompt"]}]
    given = [*job.model.messages(), *given]
    system = body.get("system") or job.model.text("system")
    if system and (not given or given[0].get("role") != "system"):
        given.insert(0, {"role": "system", "content": system})
    return given


async def fit(job: Job, runner: Runner, prompt: Prompt) -> Prompt:
    """The prompt as it goes to the engine: cut where it leaves no room for an answer."""
    room = min(job.spec.n_ctx, window(job.spec.n_ctx) - 1)  # the engine refuses one that fills it
    if not job.truncate or (isinstance(prompt, str) and len(prompt.encode()) + 2 <= room):
        return prompt
    tokens = await _tokens(runner, prompt)
    if len(tokens) <= room:
        return prompt
    if not job.spec.shift:
        raise ApiError(400, TOO_LONG)
    if job.asked.chat:
        tokens = await _drop_oldest(job, runner, tokens, room)
    if len(tokens) <= room:
        return tokens
    return shortened(tokens, job.spec.n_ctx, job.options.get("num_keep", 4))


async def _tokens(runner: Runner, prompt: Prompt) -> list[int]:
    return await engine.tokenize(runner, prompt) if isinstance(prompt, str) else prompt


async def _drop_oldest(job: Job, runner: Runner, tokens: list[int], room: int) -> list[int]:
    """The tokens of the longest history that fits: system messages stay, and so does the last."""
    given = messages(job)
    low, high = 1, len(given) - 1  # `low` first messages are dropped, if it must be
    while low <= high:
        middle = (low + high) // 2
        kept = [each for each in given[:middle] if each.get("role") == "system"]
        text = await engine.render(runner, kept + given[middle:], job.body.get("tools"))
        attempt = await engine.tokenize(runner, text)
        if len(attempt) <= room:
            tokens, high = attempt, middle - 1
        else:
            low = middle + 1
            tokens = min(tokens, attempt, key=len) if len(tokens) > room else tokens
    return tokens


async def _continued(job: Job, runner: Runner, prompt: Prompt, fields: dict[str, Any]) -> list[int]:
    """The prompt and the ids after it. `num_keep` below 0 means the prompt, not what comes after it."""
    pieces = job.answer.trail.pieces
    if not pieces:
        raise ApiError(400, NO_VOCABULARY)
    if pieces.ends_inside(job.continued):
        raise ApiError(400, CUT_CHARACTER)
    tokens = await _tokens(runner, prompt)
    if len(tokens) + len(job.continued) >= window(job.spec.n_ctx):
        raise ApiError(400, TOO_FAR)
    if fields["n_keep"] < 0:
        fields["n_keep"] = len(tokens)
    if job.body.get("continue_stepwise"):
        await engine.walk(runner, tokens, job.continued)
    return tokens + job.continued
