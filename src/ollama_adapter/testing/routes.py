"""Which request of a pretended daemon gets which answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from ollama_adapter.core.names import DEFAULT_HOST
from ollama_adapter.embedded import values
from ollama_adapter.embedded.records import go_json, timestamp
from ollama_adapter.embedded.requests import Asked, decode_body, parse_asked
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.testing.answering import Piece, Records
from ollama_adapter.testing.connection import Connection
from ollama_adapter.testing.faults import FaultKind
from ollama_adapter.testing.framing import TEXT, chunked, record_line
from ollama_adapter.testing.generating import Generation, Means, Service
from ollama_adapter.testing.model import PretendModel, count_tokens
from ollama_adapter.testing.scripted import ScriptedRequest
from ollama_adapter.testing.shelf import DETAILS_OFF, Shelf, long_name, resident_entry, shown

_METHODS: Final = {
    "/": ("GET", "HEAD"),
    "/api/version": ("GET", "HEAD"),
    "/api/tags": ("GET", "HEAD"),
    "/api/ps": ("GET",),
    "/api/status": ("GET",),
    "/api/delete": ("DELETE",),
    **dict.fromkeys(
        ("/api/show", "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/copy"),
        ("POST",),
    ),
    "/api/pull": ("POST",),
}
_NO_EMBEDDINGS: Final = "This server does not support embeddings. Start it with `--embeddings`"
_GENERATING: Final = ("/api/generate", "/api/chat")


class Desk:
    """Reads requests, and answers those that need no writing itself."""

    def __init__(self, means: Means, shelf: Shelf, version: str) -> None:
        self._means = means
        self._shelf = shelf
        self._version = version

    def generation(self, request: ScriptedRequest) -> Generation | None:
        """What counts `request`, when it asks for text."""
        if request.path not in _GENERATING or request.method != "POST":
            return None
        try:
            body = values_of(request)
        except ValueError:
            return None
        if body.get("prompt") or body.get("messages"):
            renders = bool(body.get("_debug_render_only"))
            return Generation(request, str(body.get("model", "")), renders)
        return None

    async def answer(
        self, connection: Connection, request: ScriptedRequest, generation: Generation | None
    ) -> None:
        """Answer `request`. Raises ApiError for an answer that is an error."""
        methods = _METHODS.get(request.path)
        if methods is None:
            return connection.answer(404, b"404 page not found", TEXT)
        if request.method not in methods:
            allow = f"Allow: {', '.join(reversed(methods))}"
            return connection.answer(405, b"405 method not allowed", TEXT, allow)
        match request.path:
            case "/api/generate" | "/api/chat":
                await self._generate(connection, request, generation)
            case "/api/embed" | "/api/embeddings":
                await self._embed(connection, request)
            case "/api/pull":
                self._pull(connection, request)
            case "/api/copy" | "/api/delete":
                self._rearrange(request)
                connection.answer(200)
            case "/":
                connection.answer(200, b"Ollama is running", f"{TEXT}; charset=utf-8")
            case _:
                connection.value(200, self._say(request))

    def _say(self, request: ScriptedRequest) -> dict[str, Any]:
        now_ns = self._means.clock.now_ns() + self._means.clock.epoch_offset_ns
        remote = any(self._means.armed.of(FaultKind.CLOUD))
        match request.path:
            case "/api/version":
                return {"version": self._version}
            case "/api/status":
                return {"cloud": {"disabled": True, "source": "env"}}
            case "/api/tags":
                return self._shelf.tags(now_ns, remote=remote)
            case "/api/ps":
                offset = self._means.clock.epoch_offset_ns
                residents = self._means.memory.residents().items()
                return {"models": [resident_entry(*each, offset) for each in residents]}
        body = decode_body(request.body, "ShowRequest")
        asked = body.get("model") or body.get("name") or ""
        if not asked:
            raise ApiError(400, "model is required")
        full = asked if ":" in asked else f"{asked}:latest"
        name, model = self._shelf.find(asked, f"model '{full}' not found", DETAILS_OFF)
        return shown(name, model, now_ns, remote=remote)

    def _rearrange(self, request: ScriptedRequest) -> None:
        if request.path == "/api/copy":
            body = decode_body(request.body, "CopyRequest")
            self._shelf.copy(body.get("source", ""), body.get("destination", ""))
        else:
            body = decode_body(request.body, "DeleteRequest")
            self._shelf.delete(body.get("model") or body.get("name") or "")

    @staticmethod
    def _pull(connection: Connection, request: ScriptedRequest) -> None:
        """As without a network."""
        body = decode_body(request.body, "PullRequest")
        name = str(body.get("model") or body.get("name") or "")
        model, _, tag = name.partition(":")
        where = f"https://{DEFAULT_HOST}/v2/library/{model}/manifests/{tag or 'latest'}"
        error = f'pull model manifest: Get "{where}": dial tcp: lookup {DEFAULT_HOST}: no such host'
        if not body.get("stream", True):
            return connection.answer(500, go_json({"error": error}), "application/json")
        connection.open_stream()
        for record in ({"status": "pulling manifest"}, {"error": error}):
            connection.write(chunked(record_line(record)))
        connection.end_stream()

    # Text and vectors

    async def _generate(
        self, connection: Connection, request: ScriptedRequest, generation: Generation | None
    ) -> None:
        asked = parse_asked(request.body, chat=request.path == "/api/chat")
        name, model = self._shelf.find(asked.model, f"model '{asked.model}' not found")
        _check(asked, model)
        asked.schema = values.parse_format(asked.body.get("format"))
        options = values.decode_options(asked.options)
        if generation is not None:
            service = Service(self._means, generation, connection, asked, options)
            return await service.run(name, model)
        reason = "unload" if asked.keep_alive == 0 else "load"
        if reason == "unload":
            self._means.memory.unload(name)
        else:
            await self._load(name, model, asked, options)
        now_ns = self._means.clock.now_ns() + self._means.clock.epoch_offset_ns
        connection.value(200, Records(asked).last(Piece(), timestamp(now_ns), reason, {}))

    async def _load(
        self, name: str, model: PretendModel, asked: Asked, options: Mapping[str, Any]
    ) -> None:
        load = self._means.load(model, self._means.strike)
        spec = dict(options) | ({"shift": asked.body["shift"]} if "shift" in asked.body else {})
        resident = await self._means.memory.ensure(name, model, spec, load)
        async with self._means.memory.use(resident, asked.keep_alive):
            pass

    async def _embed(self, connection: Connection, request: ScriptedRequest) -> None:
        old = request.path == "/api/embeddings"
        body = decode_body(request.body, "EmbeddingRequest" if old else "EmbedRequest")
        asked = str(body.get("model", ""))
        name, model = self._shelf.find(asked, f'model "{asked}" not found, try pulling it first')
        texts = _texts(body.get("prompt", "") if old else body.get("input", []))
        if texts and "embedding" not in model.capabilities:
            raise ApiError(500 if old else 501, _NO_EMBEDDINGS)
        options = values.decode_options(body.get("options", {}))
        clock, memory = self._means.clock, self._means.memory
        began_ns = clock.now_ns()
        load = self._means.load(model, self._means.strike)
        resident = await memory.ensure(name, model, options, load)
        loaded_ns = clock.now_ns()
        kept = body.get("keep_alive")
        async with memory.use(resident, None if kept is None else values.parse_keep_alive(kept)):
            vectors = [model.embed(each)[: body.get("dimensions") or None] for each in texts]
        if old:
            return connection.value(200, {"embedding": vectors[0]})
        figures = {
            "total_duration": clock.now_ns() - began_ns,
            "load_duration": loaded_ns - began_ns,
            "prompt_eval_count": sum(map(count_tokens, texts)),
        }
        answer = {"model": asked, "embeddings": vectors}
        connection.value(200, answer | (figures if texts else {}))


def _texts(given: Any) -> list[str]:
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(each, str) for each in texts):
        raise ApiError(400, "invalid input type")
    return texts


def values_of(request: ScriptedRequest) -> dict[str, Any]:
    """The body of a request for text; ValueError where it is not an object."""
    body = request.json()
    if not isinstance(body, dict):
        raise ValueError("not an object")
    return body


def _check(asked: Asked, model: PretendModel) -> None:
    """Refuse what the model cannot do, in Ollama's words."""
    body, able = asked.body, model.capabilities
    doing = "chat" if asked.chat else "generate"
    if "completion" not in able:
        raise ApiError(400, f'"{asked.model}" does not support {doing}')
    if body.get("think") and "thinking" not in able:
        raise ApiError(400, f'"{asked.model}" does not support thinking')
    if body.get("raw") and any(body.get(each) for each in ("template", "system", "context")):
        raise ApiError(400, "raw mode does not support template, system, or context")
    for field, word in (("suffix", "insert"), ("tools", "tools")):
        if body.get(field) and word not in able:
            raise ApiError(400, f"{long_name(asked.model)} does not support {word}")
    values.check_images(body.get("images", []))
