"""The registry: manifests, blobs, ranges, redirects; every byte of a blob that it sends is counted."""

from __future__ import annotations

import contextlib
import hashlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from ollama_adapter.core.registry import MANIFEST_TYPE, MODEL_LAYER

HERE = Path(__file__).parent
AUTHORITY, STRANGER = str(HERE / "authority.pem"), str(HERE / "stranger.pem")
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
PIECE = 16 << 10
WATCHDOG_S = 60.0


@dataclass(slots=True)
class Fault:
    """What goes wrong with a blob, `times` times; `at` is how many of its bytes are sent before."""

    kind: str
    at: int = 0
    times: int = 1
    to: str = ""


@dataclass(slots=True)
class Served:
    """One answer with a part of a blob."""

    digest: str
    start: int
    sent: int = 0

    @property
    def end(self) -> int:
        return self.start + self.sent


@dataclass(slots=True)
class Registry:
    """What it has, what goes wrong, and what it has done."""

    url: str = ""
    blobs: dict[str, bytes] = field(default_factory=dict)
    manifests: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    statuses: dict[str, list[int]] = field(default_factory=dict)
    """Answers to give first, by the word `manifests` or `blobs`."""
    served: list[Served] = field(default_factory=list)
    requests: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    held: threading.Event = field(default_factory=threading.Event)
    closing: threading.Event = field(default_factory=threading.Event)

    @property
    def host(self) -> str:
        """As a model name and a setting have it."""
        return self.url.partition("://")[2]

    def add(
        self,
        model: str,
        weights: bytes,
        *,
        config: Mapping[str, Any] | None = None,
        changed: Mapping[str, Any] | None = None,
        **texts: bytes,
    ) -> str:
        """A model `name:tag`; its whole name. `changed` replaces fields of the manifest."""
        name, _, tag = model.partition(":")
        body = {"model_format": "gguf", "model_family": "llama", **(config or {})}
        layers = [self._entry(MODEL_LAYER, weights)]
        for kind, text in texts.items():
            layers.append(self._entry(f"application/vnd.ollama.image.{kind}", text))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._entry(CONFIG_TYPE, json.dumps(body).encode()),
            "layers": layers,
            **(changed or {}),
        }
        tag = tag or "latest"
        self.manifests[f"/v2/library/{name}/manifests/{tag}"] = json.dumps(manifest).encode()
        return f"{self.host}/library/{name}:{tag}"

    def _entry(self, kind: str, data: bytes) -> dict[str, Any]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        self.blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def fault(self) -> Fault | None:
        """The next one, if any is left."""
        for each in self.faults:
            if each.times > 0:
                each.times -= 1
                return each
        return None

    def twice(self) -> int:
        """How many bytes were sent more than once."""
        wasted = 0
        reached: dict[str, int] = {}
        for each in self.served:
            wasted += max(0, min(reached.get(each.digest, 0), each.end) - each.start)
            reached[each.digest] = max(reached.get(each.digest, 0), each.end)
        return wasted


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    registry: Registry

    def do_GET(self) -> None:
        registry, path = self.registry, self.path.partition("?")[0]
        registry.requests.append((self.path, {k.lower(): v for k, v in self.headers.items()}))
        kind = "blobs" if "/blobs/" in path else "manifests"
        if waiting := registry.statuses.get(kind):
            return self._say(waiting.pop(0), b'{"errors":[]}')
        if kind == "blobs":
            return self._blob(path.rpartition("/")[2])
        raw = registry.manifests.get(path)
        self._say(404 if raw is None else 200, raw or b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')

    def _blob(self, digest: str) -> None:
        data = self.registry.blobs.get(digest)
        if data is None:
            return self._say(404, b"")
        fault = self.registry.fault()
        if fault is not None and fault.kind == "redirect":
            self.send_response(307)
            self.send_header("Location", fault.to.replace("DIGEST", digest))
            self.send_header("Content-Length", "0")
            return self.end_headers()
        if fault is not None and fault.kind == "wrong":
            data = bytes(each ^ 1 for each in data)
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted and not (fault and fault.kind == "ignores ranges"):
            start = int(wanted.removeprefix("bytes=").partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        length = len(data) - start + (fault.at if fault and fault.kind == "lies" else 0)
        if not (fault and fault.kind == "endless"):
            self.send_header("Content-Length", str(length))
        self.send_header("Connection", "close")
        self.end_headers()
        self._send(data, Served(digest, start), fault)

    def _send(self, data: bytes, served: Served, fault: Fault | None) -> None:
        self.registry.served.append(served)
        stops = fault is not None and fault.kind in ("holds", "resets", "truncates")
        end = fault.at if fault is not None and stops else len(data)
        while served.end < end:
            piece = data[served.end : min(served.end + PIECE, end)]
            self.wfile.write(piece)
            served.sent += len(piece)
        if fault is not None and fault.kind == "endless":
            while not self.registry.closing.is_set():
                self.wfile.write(bytes(PIECE))
        elif fault is not None and fault.kind == "holds":
            self.registry.held.set()
            self._until_gone()
        elif fault is not None and fault.kind == "resets":
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.close_connection = True

    def _until_gone(self) -> None:
        """Silent, until the other side has had enough."""
        self.connection.settimeout(WATCHDOG_S)
        with contextlib.suppress(OSError):
            self.connection.recv(1)

    def _say(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


class _Server(ThreadingHTTPServer):
    daemon_threads = False

    def handle_error(self, request: object, client_address: object) -> None:
        """Whoever asks may go at any time."""


@contextlib.contextmanager
def running(*, tls: bool = False) -> Iterator[Registry]:
    """One that listens until the block ends."""
    registry = Registry()
    handler = type("Handler", (_Handler,), {"registry": registry})
    server = _Server(("127.0.0.1", 0), handler)
    # What is on its way is not at the client yet: little, so that a count of bytes means something.
    server.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, PIECE)
    if tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(HERE / "server.pem")
        server.socket = context.wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    registry.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield registry
    finally:
        registry.closing.set()
        server.shutdown()
        thread.join(WATCHDOG_S)
        server.server_close()
