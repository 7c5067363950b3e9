"""The daemon as an ASGI application: routes, and who may talk to it.

A browser page of another origin and a name that was made to point here are turned away (Origin, Host)
before anything is read. Nothing of a request is ever logged.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ollama_adapter import __version__
from ollama_adapter.embedded import embed, models, text
from ollama_adapter.embedded.http import TEXT, ClientGone, Exchange, Receive, Scope, Send
from ollama_adapter.embedded.service import Service
from ollama_adapter.embedded.store import CorruptManifest
from ollama_adapter.embedded.values import ApiError

Handler = Callable[[Service, Exchange], Awaitable[None]]

_LOCAL_ORIGINS: Final = ("localhost", "127.0.0.1", "0.0.0.0")
_APP_SCHEMES: Final = ("app", "file", "tauri", "vscode-webview", "vscode-file")
_CORS_HEADERS: Final = b"Authorization,Content-Type,User-Agent,Accept,X-Requested-With"
_CORS_METHODS: Final = b"GET,POST,PUT,PATCH,DELETE,HEAD,OPTIONS"


def version() -> str:
    """Ours, and said so: this is not Ollama."""
    return f"{__version__}-embedded"


async def root(_: Service, exchange: Exchange) -> None:
    """GET /"""
    await exchange.whole(200, b"Ollama is running", TEXT + b"; charset=utf-8")


async def version_(_: Service, exchange: Exchange) -> None:
    """GET /api/version"""
    await exchange.value({"version": version(), "embedded": True})


async def status(_: Service, exchange: Exchange) -> None:
    """GET /api/status"""
    await exchange.value({"cloud": {"disabled": True, "source": "env"}})


ROUTES: Final[dict[str, dict[str, Handler]]] = {
    "/": {"GET": root},
    "/api/version": {"GET": version_},
    "/api/status": {"GET": status},
    "/api/tags": {"GET": models.tags},
    "/api/ps": {"GET": models.ps},
    "/api/show": {"POST": models.show},
    "/api/generate": {"POST": text.generate},
    "/api/chat": {"POST": text.chat},
    "/api/embed": {"POST": embed.embed},
    "/api/embeddings": {"POST": embed.embeddings},
    "/api/create": {"POST": models.create},
    "/api/copy": {"POST": models.copy},
    "/api/delete": {"DELETE": models.delete},
    "/api/pull": {"POST": models.pull},
    "/api/push": {"POST": models.push},
}
_HEAD_TOO: Final = ("/", "/api/version", "/api/tags")
_BLOBS: Final[dict[str, Handler]] = {"POST": models.blob, "HEAD": models.blob}


def routes_of(path: str) -> dict[str, Handler]:
    """The handlers of a path by method; empty for an unknown path."""
    if path.startswith("/api/blobs/") and "/" not in path[11:]:
        return _BLOBS
    handlers = ROUTES.get(path, {})
    return {"HEAD": handlers["GET"], **handlers} if path in _HEAD_TOO else handlers


class App:
    """The ASGI callable."""

    def __init__(self, service: Service, group: asyncio.TaskGroup) -> None:
        self._service = service
        self._group = group
        self._hostname = socket.gethostname().lower()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        host, origin = headers.get(b"host", b""), headers.get(b"origin", b"")
        cors = self._cors(origin, host)
        exchange = Exchange(scope, receive, send, self._group, cors or [])
        try:
            if not host_allowed(host.decode("latin-1"), self._hostname) or cors is None:
                await exchange.whole(403)
            elif scope["method"] == "OPTIONS" and origin:
                await self._preflight(exchange)
            else:
                await self._handle(exchange)
        except ApiError as error:
            await exchange.error(error)
        except CorruptManifest as error:
            await exchange.error(ApiError(500, str(error)))
        except OSError as error:
            await exchange.error(ApiError(500, error.strerror or "the store cannot be used"))
        except ClientGone:
            pass

    async def _handle(self, exchange: Exchange) -> None:
        handlers = routes_of(exchange.path)
        if not handlers:
            return await exchange.whole(404, b"404 page not found", TEXT)
        handler = handlers.get(exchange.method)
        if handler is None:
            allow = (b"allow", ", ".join(sorted(handlers, reverse=True)).encode())
            return await exchange.whole(405, b"405 method not allowed", TEXT, allow)
        await handler(self._service, exchange)

    async def _preflight(self, exchange: Exchange) -> None:
        await exchange.whole(
            204,
            b"",
            b"",
            (b"access-control-allow-headers", _CORS_HEADERS),
            (b"access-control-allow-methods", _CORS_METHODS),
            (b"access-control-max-age", b"43200"),
        )

    def _cors(self, origin: bytes, host: bytes) -> list[Any] | None:
        """The headers that let an origin read the answer; None where it may not even ask."""
        if not origin or origin.partition(b"://")[2] == host:
            return []
        if not origin_allowed(origin.decode("latin-1"), self._service.settings.origins):
            return None
        return [(b"access-control-allow-origin", origin), (b"vary", b"Origin")]


def host_allowed(host: str, hostname: str) -> bool:
    """Whether a Host header names this machine."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    name = name.strip("[]").lower()
    try:
        address = ipaddress.ip_address(name)
        return address.is_loopback or address.is_private or address.is_unspecified
    except ValueError:
        pass
    known = ("", "localhost", hostname)
    return name in known or name.endswith((".localhost", ".local", ".internal"))


def origin_allowed(origin: str, more: tuple[str, ...]) -> bool:
    """Whether a page of this origin may use the daemon."""
    if "*" in more or origin in more:
        return True
    scheme, _, rest = origin.partition("://")
    if scheme in _APP_SCHEMES:
        return True
    name, _, port = rest.partition(":")
    return scheme in ("http", "https") and name in _LOCAL_ORIGINS and (not port or port.isdigit())
