"""From a request to the runner's answer: which model, how loaded, what prompt.

Nothing is sent to the client from here: errors are raised as ApiError before the first record, so that
they keep their status.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName, parse_name
from ollama_adapter.embedded import catalog, values, wire
from ollama_adapter.embedded.child import Runner, Spec
from ollama_adapter.embedded.records import Answer, encode
from ollama_adapter.embedded.requests import Asked
from ollama_adapter.embedded.scheduler import Loaded, Scheduler
from ollama_adapter.embedded.settings import Settings, grammar, plan_spec, sampling, shortened
from ollama_adapter.embedded.store import CorruptManifest, Model, Store
from ollama_adapter.embedded.tools import chat_body
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.errors import InvalidModelFile, InvalidRequest, ModelNotFound
from ollama_adapter.system.clock import monotonic_ns

RUNNER_DIED: Final = "an error was encountered while running the model: unexpected EOF"
CLOUD_OFF: Final = "ollama cloud is disabled: remote model is unavailable"
TOO_LONG: Final = (
    "the prompt is longer than the context length currently available to the model; shorten the "
    "prompt, adjust the context length in settings, or use a model with a longer context length"
)
NO_TEMPLATES: Final = (
    "this daemon renders prompts with the template inside the model file; use raw, or put the whole "
    "prompt together yourself"
)


@dataclass(slots=True)
class Job:
    """A request whose model is known and whose options are checked."""

    asked: Asked
    model: Model
    header: gguf.Header
    options: dict[str, Any]
    spec: Spec
    answer: Answer

    @property
    def body(self) -> dict[str, Any]:
        return self.asked.body

    @property
    def truncate(self) -> bool:
        return bool(self.body.get("truncate", True))


class Service:
    """The daemon's knowledge of its models; one per process."""

    def __init__(self, store: Store, scheduler: Scheduler, settings: Settings) -> None:
        self.store = store
        self.scheduler = scheduler
        self.settings = settings

    # Finding a model

    def find(self, text: str, missing: str) -> Model:
        """The model a request names; `missing` is the error where there is none."""
        if not text:
            raise ApiError(404, missing)
        name = self.name(text)
        if name.is_cloud:
            raise ApiError(403, CLOUD_OFF)
        local = name.tag.lower() == "local"
        try:
            model = self.store.find(parse_name(text[:-6]) if local else name)
        except ModelNotFound:
            raise ApiError(404, missing) from None
        except CorruptManifest as error:
            raise ApiError(500, str(error)) from None
        if model.remote_host:
            raise ApiError(404, missing) if local else ApiError(403, CLOUD_OFF)
        return model

    @staticmethod
    def name(text: str) -> ModelName:
        try:
            return parse_name(text)
        except InvalidRequest:
            raise ApiError(400, "invalid model name") from None

    def header(self, model: Model, asked: str) -> gguf.Header:
        """The checked header of a model's weights."""
        try:
            if model.weights is None:
                raise FileNotFoundError
            return self.store.header(model.weights)
        except FileNotFoundError:
            raise ApiError(404, f'model "{asked}" not found, try pulling it first') from None
        except InvalidModelFile as error:
            raise ApiError(500, str(error)) from None

    def prepare(self, asked: Asked) -> Job:
        """Everything about a request for text that can be said without loading the model."""
        model = self.find(asked.model, f"model '{asked.model}' not found")
        self._refuse(asked, model)
        header = self.header(model, asked.model)
        able = catalog.capabilities(header)
        if "completion" not in able:
            doing = "chat" if asked.chat else "generate"
            raise ApiError(400, f'"{asked.model}" does not support {doing}')
        if asked.body.get("think"):
            raise ApiError(400, f'"{asked.model}" does not support thinking')
        if asked.body.get("tools") and "tools" not in able:
            raise ApiError(400, f"{full_name(model.name)} does not support tools")
        options = values.decode_options({**model.parameters(), **asked.options})
        asked.schema = values.parse_format(asked.body.get("format"))
        shift = asked.body.get("shift", True)
        spec = plan_spec(
            self.settings, model.weights or self.store.root, header, options, shift=shift
        )
        answer = Answer(asked.model, chat=asked.chat, top=asked.top_logprobs)
        return Job(asked, model, header, options, spec, answer)

    @staticmethod
    def _refuse(asked: Asked, model: Model) -> None:
        body = asked.body
        if body.get("raw") and any(body.get(each) for each in ("template", "system", "context")):
            raise ApiError(400, "raw mode does not support template, system, or context")
        if body.get("suffix"):
            raise ApiError(400, f"{full_name(model.name)} does not support insert")
        if body.get("template"):
            raise ApiError(400, NO_TEMPLATES)
        if body.get("context"):
            raise ApiError(400, "context is not supported by this daemon; use /api/chat")
        if "prompt_tokens" in body and not (body.get("raw") and not body.get("prompt")):
            raise ApiError(400, "prompt_tokens needs raw, and no prompt beside it")
        images = [*body.get("images", [])]
        for message in body.get("messages", []):
            images += message.get("images") or []
        values.check_images(images)

    # Making a prompt

    async def prompt(self, job: Job, runner: Runner) -> str | list[int]:
        """What the runner shall continue, before any cut."""
        body = job.body
        if "prompt_tokens" in body:
            return list(body["prompt_tokens"])
        if not job.asked.chat and (body.get("raw") or not self._has_template(job)):
            return str(body["prompt"])
        messages = self.messages(job)
        if messages[-1].get("role") == "assistant":
            job.answer.prefill = str(messages[-1].get("content", ""))
        return await render(runner, messages, body.get("tools"))

    @staticmethod
    def _has_template(job: Job) -> bool:
        return bool(job.header.text("tokenizer.chat_template"))

    def messages(self, job: Job) -> list[dict[str, Any]]:
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

    async def fit(self, job: Job, runner: Runner, prompt: str | list[int]) -> str | list[int]:
        """The prompt as it goes to the engine: cut where it is longer than the context."""
        room = job.spec.n_ctx
        if not job.truncate or (isinstance(prompt, str) and len(prompt.encode()) + 2 <= room):
            return prompt
        tokens = await tokenize(runner, prompt) if isinstance(prompt, str) else prompt
        if len(tokens) <= room:
            return prompt
        if not job.spec.shift:
            raise ApiError(400, TOO_LONG)
        if job.asked.chat:
            tokens = await self._drop_oldest(job, runner, tokens)
        if len(tokens) <= room:
            return tokens
        return shortened(tokens, room, job.options.get("num_keep", 4))

    async def _drop_oldest(self, job: Job, runner: Runner, tokens: list[int]) -> list[int]:
        """The tokens of the longest history that fits: system messages stay, and so does the last."""
        messages = self.messages(job)
        low, high = 1, len(messages) - 1  # `low` first messages are dropped, if it must be
        while low <= high:
            middle = (low + high) // 2
            kept = [each for each in messages[:middle] if each.get("role") == "system"]
            text = await render(runner, kept + messages[middle:], job.body.get("tools"))
            attempt = await tokenize(runner, text)
            if len(attempt) <= job.spec.n_ctx:
                tokens, high = attempt, middle - 1
            else:
                low = middle + 1
                tokens = min(tokens, attempt, key=len) if len(tokens) > job.spec.n_ctx else tokens
        return tokens

    # Running it

    @contextlib.asynccontextmanager
    async def lease(self, job: Job, *, slot: bool = True) -> AsyncIterator[Loaded]:
        """The job's model in memory, and the time that took."""
        begin = monotonic_ns()
        async with self.scheduler.lease(
            job.model, job.spec, job.asked.keep_alive, slot=slot
        ) as loaded:
            job.answer.load_ns = monotonic_ns() - begin
            yield loaded

    async def complete(self, job: Job, runner: Runner, prompt: str | list[int]) -> wire.Reply:
        """The engine's answer, begun. ApiError where it refuses."""
        top = job.asked.top_logprobs
        body = {
            "prompt": prompt,
            "stream": True,
            "return_tokens": True,
            "cache_prompt": True,
            "post_sampling_probs": False,
            "n_probs": 0 if top is None else max(1, top),
            "response_fields": [
                "stop",
                "stop_type",
                "tokens_predicted",
                "tokens_evaluated",
                "timings",
            ],
            **sampling(job.options, job.spec.n_ctx),
        }
        if job.asked.schema is not None:
            body["grammar"] = grammar(job.asked.schema)
        return await self._open(runner, "/completion", body)

    async def converse(self, job: Job, runner: Runner) -> wire.Reply:
        """The same by the engine's chat endpoint, which knows about tools."""
        fields = sampling(job.options, job.spec.n_ctx)
        body = chat_body(self.messages(job), job.body["tools"], fields)
        return await self._open(runner, "/v1/chat/completions", body)

    @staticmethod
    async def _open(runner: Runner, path: str, body: dict[str, Any]) -> wire.Reply:
        reply = await runner.open(path, encode(body))
        if reply.status != 200:
            async with reply:
                raise refusal(reply.status, await reply.read())
        return reply


def full_name(name: ModelName) -> str:
    """A name with all its parts."""
    return f"{name.host}/{name.namespace}/{name.model}:{name.tag}"


def refusal(status: int, body: bytes) -> ApiError:
    """An error of the engine, passed on as Ollama does: its JSON as the text of ours."""
    return ApiError(status, body.decode("utf-8", "replace"))


async def render(runner: Runner, messages: list[dict[str, Any]], tools: Any = None) -> str:
    """Messages in the model's own chat template."""
    plain = [{"content": "", **each} for each in messages]
    for each in plain:
        each.pop("images", None)
    body: dict[str, Any] = {"messages": plain}
    if tools:
        body["tools"] = tools
    status, answer = await runner.call("/apply-template", body)
    if status != 200:
        raise refusal(status, answer)
    return str(msgspec.json.decode(answer)["prompt"])


async def tokenize(runner: Runner, text: str) -> list[int]:
    """The token ids of a prompt, special ones included."""
    body = {"content": text, "add_special": True, "parse_special": True}
    status, answer = await runner.call("/tokenize", body)
    if status != 200:
        raise refusal(status, answer)
    return list(msgspec.json.decode(answer)["tokens"])
