"""One method per endpoint of the daemon, errors translated, nothing remembered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from ollama_adapter.core.failures import remote_refused, response_error
from ollama_adapter.core.records import ChatRecord, GenerateRecord
from ollama_adapter.core.relayed import Relayed
from ollama_adapter.core.requests import Request
from ollama_adapter.errors import ConnectionLost, ProtocolError, PullFailed, ReadTimeout
from ollama_adapter.events import Embeddings
from ollama_adapter.system.dialing import Dial
from ollama_adapter.system.fetching import MAX_BODY_BYTES, fetch
from ollama_adapter.system.http import (
    Exchange,
    Sink,
    encode_request,
    open_exchange,
)

ANSWER_S: Final = 30.0  # for endpoints that neither load nor generate
PULL_S: Final = 600.0  # it checks whole files without a word
MAX_VECTOR_BYTES: Final = 1 << 20  # 40,000 numbers as long as they get
_RECORDS: Final[Mapping[str, type[GenerateRecord | ChatRecord]]] = {
    "/api/generate": GenerateRecord,
    "/api/chat": ChatRecord,
}


class OllamaClient:
    """Talks to the daemon that `dial` connects to. Every method: cancelling is safe."""

    def __init__(self, dial: Dial, connect_s: float) -> None:
        self._dial = dial
        self._connect_s = connect_s

    async def version(self) -> str:
        return str((await self._call("GET", "/api/version")).get("version", ""))

    async def tags(self) -> list[dict[str, Any]]:
        """The models on disk, as the daemon lists them."""
        return _listing(await self._call("GET", "/api/tags"))

    async def ps(self) -> list[dict[str, Any]]:
        """The models in memory, as the daemon lists them (it may list a dead one)."""
        return _listing(await self._call("GET", "/api/ps"))

    async def show(self, model: str) -> dict[str, Any]:
        """What the daemon knows of a model. Raises ModelNotFound, RemoteModelRefused."""
        shown = await self._call("POST", "/api/show", {"model": model}, model=model)
        try:
            shown["capabilities"] = msgspec.convert(shown.get("capabilities") or [], list[str])
        except msgspec.ValidationError:
            raise ProtocolError("the daemon's list of what a model can do is not a list") from None
        return shown

    async def copy(self, source: str, destination: str) -> None:
        body = {"source": source, "destination": destination}
        await self._call("POST", "/api/copy", body, model=source)

    async def delete(self, model: str) -> None:
        await self._call("DELETE", "/api/delete", {"model": model}, model=model)

    async def load(self, request: Request, answer_s: float | None) -> dict[str, Any]:
        """Send a request that only loads. Raises RemoteModelRefused where it loads somewhere else."""
        answer = await self._fetch("POST", request.path, request.body, request.model, answer_s)
        if answer.get("remote_host"):
            raise remote_refused(request.model, 200)
        return answer

    async def embed(self, request: Request, answer_s: float) -> Embeddings:
        limit = MAX_VECTOR_BYTES * max(1, request.texts)
        answer = await self._fetch(
            "POST", request.path, request.body, request.model, answer_s, limit
        )
        try:
            vectors = msgspec.convert(answer.get("embeddings", []), list[list[float]])
            count = msgspec.convert(answer.get("prompt_eval_count", 0), int)
        except msgspec.ValidationError:
            raise ProtocolError("the daemon's embeddings are not lists of numbers") from None
        if answer.get("remote_host"):
            raise remote_refused(request.model, 200)
        if len(vectors) != request.texts:
            raise ProtocolError(
                f"the daemon sent {len(vectors)} embeddings for {request.texts} texts"
            )
        return Embeddings(request.model, vectors, count)

    async def ask(self, request: Request, answer_s: float) -> GenerateRecord | ChatRecord:
        """The answer to a request that does not stream, such as for the rendered prompt.

        Raises ConnectionLost for half of one: a daemon whose runner died sends it as if it were whole.
        """
        answer = await self._fetch("POST", request.path, request.body, request.model, answer_s)
        answer.pop("context", None)  # long, and nobody reads it
        try:
            record = msgspec.convert(answer, _RECORDS[request.path])
        except msgspec.ValidationError:
            raise ProtocolError("the daemon's answer is not a record") from None
        if not record.done and record.debug_info is None:
            raise ConnectionLost("the daemon sent half of an answer")
        return record

    async def generate(self, request: Request, sink: Sink) -> Exchange:
        """Open a streaming generation; its body goes to `sink` as it arrives."""
        data = encode_request("POST", request.path, request.body)
        return await open_exchange(self._dial, data, sink, self._connect_s)

    async def has_blob(self, digest: str) -> bool:
        """Whether the daemon's own store has this blob."""
        request = encode_request("HEAD", f"/api/blobs/{digest}")
        exchange = await open_exchange(self._dial, request, lambda *_: None, self._connect_s)
        try:
            async with asyncio.timeout(ANSWER_S):
                await exchange.ended  # the answer has no body, and may well not say so
        except TimeoutError as error:
            raise ReadTimeout(f"no answer from the daemon within {ANSWER_S:g} s") from error
        finally:
            exchange.close()
        return exchange.status == 200

    async def pull(self, model: str, on_progress: Callable[[Relayed], None]) -> None:
        """Let the daemon download a model by itself. Raises PullFailed, ReadTimeout when it falls silent.

        Cancelling closes the connection, and the daemon stops.
        """
        body, told = msgspec.json.encode({"model": model}), Relayed(model)
        news = asyncio.Event()

        def take(_status: int, data: bytes, _now_ns: int) -> None:
            told.feed(data)
            on_progress(told)
            news.set()

        request = encode_request("POST", "/api/pull", body)
        exchange = await open_exchange(self._dial, request, take, self._connect_s)
        exchange.ended.add_done_callback(lambda _: news.set())
        try:
            while not exchange.ended.done():
                news.clear()
                async with asyncio.timeout(PULL_S):
                    await news.wait()
            await exchange.ended
        except TimeoutError as error:
            raise ReadTimeout(f"the daemon said nothing for {PULL_S:g} s") from error
        finally:
            exchange.close()
        if not told.succeeded:
            raise PullFailed(
                f"the daemon's download of {model} ended before it was complete",
                hint="what it has downloaded it keeps: pull again",
            )

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, model: str = ""
    ) -> dict[str, Any]:
        data = b"" if body is None else msgspec.json.encode(body)
        return await self._fetch(method, path, data, model, ANSWER_S)

    async def _fetch(
        self,
        method: str,
        path: str,
        body: bytes,
        model: str,
        answer_s: float | None,
        max_bytes: int = MAX_BODY_BYTES,
    ) -> dict[str, Any]:
        response = await fetch(
            self._dial,
            encode_request(method, path, body),
            connect_s=self._connect_s,
            answer_s=answer_s,
            max_bytes=max_bytes,
        )
        if response.status not in (200, 201):
            raise response_error(response.status, response.body, model, body)
        return _decode(response.body)


def _decode(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        return msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        raise ProtocolError(
            "the daemon's answer is not JSON",
            hint="something else may listen on the daemon's port",
        ) from None


def _listing(answer: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        return msgspec.convert(answer.get("models") or [], list[dict[str, Any]])
    except msgspec.ValidationError:
        raise ProtocolError("the daemon's list of models is not a list") from None
