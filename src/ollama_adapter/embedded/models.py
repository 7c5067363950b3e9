"""The endpoints that look at models or change the store: tags, ps, show, create, copy, delete, blobs."""

from __future__ import annotations

import contextlib
import hashlib
from typing import Any

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName
from ollama_adapter.embedded import catalog, importer
from ollama_adapter.embedded.http import Exchange
from ollama_adapter.embedded.records import encode
from ollama_adapter.embedded.requests import decode_body
from ollama_adapter.embedded.service import CLOUD_OFF, Service
from ollama_adapter.embedded.store import TINYDOC_NAME, CorruptManifest, Model, open_gguf
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.errors import InvalidModelFile, ModelNotFound, PoolError

NO_DOWNLOADS = (
    "this daemon never downloads: `ollama-adapter import FILE.gguf NAME` adds a model from a file"
)


async def tags(service: Service, exchange: Exchange) -> None:
    """GET /api/tags"""
    found = [catalog.tag(each, _header(service, each)) for each in service.store.models()]
    await exchange.value({"models": found})


def _header(service: Service, model: Model) -> gguf.Header | None:
    with contextlib.suppress(InvalidModelFile, OSError):
        return service.store.header(model.weights) if model.weights else None
    return None


async def ps(service: Service, exchange: Exchange) -> None:
    """GET /api/ps"""
    residents = service.scheduler.residents()
    entries = [
        catalog.resident(each, header)
        for each in residents
        if (header := _header(service, each.model)) is not None
    ]
    await exchange.value({"models": entries})


async def show(service: Service, exchange: Exchange) -> None:
    """POST /api/show"""
    body = decode_body(await exchange.body(), "ShowRequest")
    text = body.get("model") or body.get("name")
    if not text:
        raise ApiError(400, "model is required")
    name = service.name(text)
    try:
        model = service.find(text, f"model '{name}' not found")
    except ApiError as error:
        if error.message == CLOUD_OFF:
            error.message = CLOUD_OFF.replace("model is", "model details are")
        raise
    header = service.header(model, text)
    assert model.weights is not None
    data = open_gguf(model.weights)
    await exchange.value(catalog.show(model, header, data, verbose=bool(body.get("verbose"))))


def _refuse_bundled(name: ModelName) -> None:
    if name.key == TINYDOC_NAME.key:
        raise ApiError(400, importer.BUNDLED)


async def copy(service: Service, exchange: Exchange) -> None:
    """POST /api/copy"""
    body = decode_body(await exchange.body(), "CopyRequest")
    names = []
    for end in ("source", "destination"):
        try:
            names.append(service.name(body.get(end, "")))
        except ApiError:
            raise ApiError(400, f'{end} "{body.get(end, "")}" is invalid') from None
    model = _find(service, names[0], f'model "{body["source"]}" not found')
    _refuse_bundled(names[1])
    if model.bundled:
        importer.create(service.store, names[1], model, {})
    else:
        service.store.copy(model, names[1])
    await exchange.whole(200)


def _find(service: Service, name: Any, missing: str) -> Model:
    try:
        return service.store.find(name)
    except ModelNotFound:
        raise ApiError(404, missing) from None
    except CorruptManifest as error:
        raise ApiError(500, str(error)) from None


async def delete(service: Service, exchange: Exchange) -> None:
    """DELETE /api/delete"""
    body = decode_body(await exchange.body(), "DeleteRequest")
    text = body.get("model") or body.get("name")
    if not text:
        raise ApiError(400, "model is required")
    model = _find(service, service.name(text), f"model '{text}' not found")
    if model.bundled:
        raise ApiError(400, importer.BUNDLED)
    service.store.delete(model)
    await exchange.whole(200)


async def blob(service: Service, exchange: Exchange) -> None:
    """HEAD and POST /api/blobs/:digest"""
    digest = exchange.path.removeprefix("/api/blobs/")
    try:
        target = importer.blob_of(service.store, digest)
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    if target.is_file():
        return await exchange.whole(200)
    if exchange.method == "HEAD":
        raise ApiError(404, f'blob "sha256:{target.name[7:]}" not found')
    seen = hashlib.sha256()
    with service.store.temporary_blob() as partial:
        with partial.open("wb") as file:
            async for chunk in exchange.chunks():
                seen.update(chunk)
                file.write(chunk)
        if f"sha256-{seen.hexdigest()}" != target.name:
            expected = target.name.replace("-", ":", 1)
            got = f"sha256:{seen.hexdigest()}"
            raise ApiError(400, f'digest mismatch, expected "{expected}", got "{got}"')
        partial.replace(target)
    await exchange.whole(201)


async def create(service: Service, exchange: Exchange) -> None:
    """POST /api/create"""
    body = decode_body(await exchange.body(), "CreateRequest")
    name = service.name(body.get("model") or body.get("name") or "")
    _refuse_bundled(name)
    if not body.get("from") and not body.get("files"):
        raise ApiError(400, "neither 'from' or 'files' was specified")
    if body.get("remote_host"):
        raise ApiError(400, "this daemon runs no models on other machines")
    for field in ("quantize", "adapters"):
        if body.get(field):
            raise ApiError(400, f"{field} is not supported by this daemon")
    stream = body.get("stream", True)
    if stream and not body.get("from"):
        await exchange.record(encode({"status": "parsing GGUF"}))
    try:
        lines = importer.create(service.store, name, _source(service, body), body)
    except InvalidModelFile as error:
        raise ApiError(400, str(error)) from None
    except (PoolError, OSError) as error:
        raise ApiError(500, str(error)) from None
    if not stream:
        return await exchange.value({"status": "success"})
    for line in lines:
        await exchange.record(encode({"status": line}), last=line == "success")


def _source(service: Service, body: dict[str, Any]) -> Any:
    if body.get("from"):
        return service.find(body["from"], f"model '{body['from']}' not found: {NO_DOWNLOADS}")
    if len(body["files"]) > 1:
        raise ApiError(400, "only one GGUF file can be used")
    (digest,) = body["files"].values()
    try:
        path = importer.blob_of(service.store, digest)
    except ValueError as error:
        raise ApiError(400, str(error)) from None
    if not path.is_file():
        raise ApiError(400, f"open {path}: no such file or directory")
    return path


async def pull(service: Service, exchange: Exchange) -> None:
    """POST /api/pull: refused."""
    await _no_download(service, exchange, "PullRequest", "pulling manifest")


async def push(service: Service, exchange: Exchange) -> None:
    """POST /api/push: refused."""
    await _no_download(service, exchange, "PushRequest", "retrieving manifest")


async def _no_download(service: Service, exchange: Exchange, struct: str, status: str) -> None:
    body = decode_body(await exchange.body(), struct)
    service.name(body.get("model") or body.get("name") or "")
    if body.get("stream", True):
        await exchange.record(encode({"status": status}))
    raise ApiError(500, NO_DOWNLOADS if struct == "PullRequest" else "this daemon never uploads")
