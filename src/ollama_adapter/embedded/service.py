"""From a request to a job: which model, how loaded, and whether we can do what is asked.

Nothing is sent to the client from here: errors are raised as ApiError before the first record, so that
they keep their status.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName, parse_name
from ollama_adapter.embedded import catalog, values
from ollama_adapter.embedded.child import Spec
from ollama_adapter.embedded.pieces import Pieces, Trail, vocabulary_size
from ollama_adapter.embedded.records import Answer
from ollama_adapter.embedded.requests import Asked
from ollama_adapter.embedded.scheduler import Loaded, Scheduler
from ollama_adapter.embedded.settings import Settings, plan_spec
from ollama_adapter.embedded.store import CorruptManifest, Model, Store, open_gguf
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.errors import InvalidModelFile, InvalidRequest, ModelNotFound
from ollama_adapter.system.clock import monotonic_ns
from ollama_adapter.veiled import Veiled

RUNNER_DIED: Final = "an error was encountered while running the model: unexpected EOF"
CLOUD_OFF: Final = "ollama cloud is disabled: remote model is unavailable"
NO_TEMPLATES: Final = (
    "this daemon renders prompts with the template inside the model file; use raw, or put the whole "
    "prompt together yourself"
)
INVALID_TOKENS: Final = "Prompt contains invalid tokens"  # the engine's words


class Job(Veiled, msgspec.Struct):
    """A request whose model is known and whose options are checked."""

    asked: Asked
    model: Model
    header: gguf.Header
    options: dict[str, Any]
    spec: Spec
    answer: Answer
    continued: list[int]  # generated already, to be gone on from

    @property
    def body(self) -> dict[str, Any]:
        return self.asked.body

    @property
    def truncate(self) -> bool:
        return bool(self.body.get("truncate", True))

    @property
    def has_template(self) -> bool:
        return bool(self.header.text("tokenizer.chat_template"))


class Service:
    """The daemon's knowledge of its models; one per process."""

    def __init__(self, store: Store, scheduler: Scheduler, settings: Settings) -> None:
        self.store = store
        self.scheduler = scheduler
        self.settings = settings
        self._pieces: dict[Path, asyncio.Future[Pieces]] = {}

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
        continued = _ids(asked.body.get("continue_tokens", ()), header)
        _ids(asked.body.get("prompt_tokens", ()), header)
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
        return Job(asked, model, header, options, spec, answer, continued)

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
        if body.get("continue_tokens"):
            _refuse_to_continue(asked)
        images = [*body.get("images", [])]
        for message in body.get("messages", []):
            images += message.get("images") or []
        values.check_images(images)

    # Running it

    @contextlib.asynccontextmanager
    async def lease(self, job: Job, *, slot: bool = True) -> AsyncIterator[Loaded]:
        """The job's model in memory, and the time that took."""
        begin = monotonic_ns()
        reading = self._read_pieces(job)
        async with self.scheduler.lease(
            job.model, job.spec, job.asked.keep_alive, slot=slot
        ) as loaded:
            job.answer.load_ns = monotonic_ns() - begin
            job.answer.trail = Trail(await asyncio.shield(reading))
            yield loaded

    def _read_pieces(self, job: Job) -> asyncio.Future[Pieces]:
        """The model's vocabulary: read once, in a thread, while the engine loads the model."""
        path = job.spec.weights
        if path not in self._pieces:
            loop = asyncio.get_running_loop()
            self._pieces[path] = loop.run_in_executor(None, _pieces_of, path, job.header)
        return self._pieces[path]


def _pieces_of(path: Path, header: gguf.Header) -> Pieces:
    try:
        return Pieces.read(header, open_gguf(path))
    except OSError:  # removed meanwhile
        return Pieces(())


def _refuse_to_continue(asked: Asked) -> None:
    body = asked.body
    if asked.is_empty:
        raise ApiError(400, "continue_tokens needs a prompt to stand after")
    for name, why in (
        ("format", "its grammar would begin anew"),
        ("tools", "their calls are not made of tokens here"),
    ):
        if body.get(name):
            raise ApiError(400, f"continue_tokens cannot be had with {name}: {why}")


def _ids(tokens: Sequence[int], header: gguf.Header) -> list[int]:
    """Token ids that the model knows. (The engine would take some beyond 32 bits for others.)"""
    size = vocabulary_size(header)
    if not all(0 <= each < size for each in tokens):
        raise ApiError(400, values.nested_error(400, INVALID_TOKENS, "invalid_request_error"))
    return [int(each) for each in tokens]


def full_name(name: ModelName) -> str:
    """A name with all its parts."""
    return f"{name.host}/{name.namespace}/{name.model}:{name.tag}"
