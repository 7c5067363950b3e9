"""The models on the disk, in Ollama's own layout (system.store), so that they move freely in both directions.

The demonstration model of the package is listed beside the store and never copied into it, unless the
store has its own `tinydoc`.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName
from ollama_adapter.errors import ModelNotFound
from ollama_adapter.system.store import Layout
from ollama_adapter.veiled import Veiled

LAYER: Final = "application/vnd.ollama.image."
MANIFEST_TYPE: Final = "application/vnd.docker.distribution.manifest.v2+json"
CONFIG_TYPE: Final = "application/vnd.docker.container.image.v1+json"
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
MAX_TEXT_LAYER: Final = 1 << 22

TINYDOC: Final = Path(__file__).parent / "tinydoc" / "tinydoc.gguf"
TINYDOC_NAME: Final = ModelName("registry.ollama.ai", "library", "tinydoc", "latest")
TINYDOC_NOTE: Final = (
    "tinydoc is a demonstration model that knows nothing: about a million parameters, trained on the "
    "documentation of the Python standard library, made to show that everything works. "
    "Do not believe what it says."
)
TINYDOC_PARAMETERS: Final = {"num_predict": 256}  # it may well go on for ever


class CorruptManifest(Exception):
    """A manifest that cannot be read."""


class Model(Veiled, msgspec.Struct):
    """What a name means: its manifest, and where its weights are."""

    name: ModelName
    digest: str
    modified: float
    size: int
    config: dict[str, Any]
    weights: Path | None
    layers: dict[str, list[Path]]
    bundled: bool = False

    @property
    def remote_host(self) -> str:
        return str(self.config.get("remote_host") or "")

    def text(self, kind: str) -> str:
        """The text of the last layer of a kind: template, system, params, messages."""
        paths = self.layers.get(kind)
        return _read_text(paths[-1]) if paths else ""

    def licenses(self) -> list[str]:
        return [_read_text(each) for each in self.layers.get("license", [])]

    def parameters(self) -> dict[str, Any]:
        """The options stored with the model."""
        if self.bundled:
            return dict(TINYDOC_PARAMETERS)
        value = _json(self.text("params") or "{}")
        return value if isinstance(value, dict) else {}

    def messages(self) -> list[dict[str, Any]]:
        value = _json(self.text("messages") or "[]")
        return value if isinstance(value, list) else []


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MAX_TEXT_LAYER).decode("utf-8", "replace")
    except OSError:
        return ""


def _json(text: str | bytes) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise CorruptManifest("unexpected EOF") from None


def _digest_of(entry: Mapping[str, Any]) -> str:
    """The digest in a manifest; one that is none must never become a path."""
    digest = entry["digest"]
    if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
        raise CorruptManifest("invalid digest format")
    return digest


def open_gguf(path: Path) -> gguf.Buffer:
    """The bytes of a file without reading them all."""
    with path.open("rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


class Store(Layout):
    """A model store, read and written through this object only. It keeps nothing open."""

    def __init__(self, root: Path, *, bundled: bool = True) -> None:
        super().__init__(root)
        self._bundled = bundled
        self._headers: dict[tuple[Path, int, int], gguf.Header] = {}

    # Reading

    def models(self) -> list[Model]:
        """Every readable model, the newest first; the bundled one last."""
        found: list[Model] = []
        for name, path in self.manifest_files():
            with contextlib.suppress(CorruptManifest, OSError):
                found.append(self._read(name, path))
        found.sort(key=lambda each: -each.modified)
        if self._has_bundled() and all(each.name.key != TINYDOC_NAME.key for each in found):
            found.append(self._tinydoc())
        return found

    def find(self, name: ModelName) -> Model:
        """What `name` means, whatever its case; raises ModelNotFound or CorruptManifest."""
        path = self.manifest(name)
        if path is not None:
            return self._read(name, path)
        if name.key == TINYDOC_NAME.key and self._has_bundled():
            return self._tinydoc()
        raise ModelNotFound(f"model '{name}' not found", status=404, model=str(name))

    def header(self, path: Path) -> gguf.Header:
        """The checked header of a GGUF file; parsed once. Raises InvalidModelFile, FileNotFoundError."""
        status = path.stat()
        key = (path, status.st_mtime_ns, status.st_size)
        if key not in self._headers:
            self._headers[key] = gguf.parse(open_gguf(path))
        return self._headers[key]

    def _has_bundled(self) -> bool:
        return self._bundled and TINYDOC.is_file()

    def _read(self, name: ModelName, path: Path) -> Model:
        raw = path.read_bytes()
        manifest = _json(raw)
        try:
            config_path = self.blob(_digest_of(manifest["config"]))
            size = int(manifest["config"].get("size", 0))
            layers: dict[str, list[Path]] = {}
            for layer in manifest.get("layers") or []:
                size += int(layer.get("size", 0))
                kind = str(layer["mediaType"]).removeprefix(LAYER)
                layers.setdefault(kind, []).append(self.blob(_digest_of(layer)))
        except (KeyError, TypeError, ValueError, AttributeError):
            raise CorruptManifest("unexpected EOF") from None
        config = _json(config_path.read_bytes()) if config_path.is_file() else {}
        return Model(
            name=name,
            digest=hashlib.sha256(raw).hexdigest(),
            modified=path.stat().st_mtime,
            size=size,
            config=config if isinstance(config, dict) else {},
            weights=layers["model"][0] if layers.get("model") else None,
            layers=layers,
        )

    def _tinydoc(self) -> Model:
        status = TINYDOC.stat()
        digest = hashlib.sha256(TINYDOC.read_bytes()).hexdigest()
        notice = TINYDOC.parent / "NOTICE"
        layers = {"model": [TINYDOC], "license": [notice] if notice.is_file() else []}
        config = {"model_format": "gguf", "model_family": "demonstration"}
        return Model(
            TINYDOC_NAME, digest, status.st_mtime, status.st_size, config, TINYDOC, layers, True
        )

    # Writing

    def write(
        self, name: ModelName, config: Mapping[str, Any], layers: list[tuple[str, str]]
    ) -> None:
        """Make `name` mean these layers, given as (kind, digest); their blobs are there already."""
        body = {
            **config,
            "rootfs": {"type": "layers", "diff_ids": [digest for _, digest in layers]},
        }
        config_digest = self.put(msgspec.json.encode(body))
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self._entry(CONFIG_TYPE, config_digest),
            "layers": [self._entry(LAYER + kind, digest) for kind, digest in layers],
        }
        self.write_manifest(name, msgspec.json.encode(manifest))

    def _entry(self, media_type: str, digest: str) -> dict[str, Any]:
        return {
            "mediaType": media_type,
            "digest": digest,
            "size": self.blob(digest).stat().st_size,
        }

    def copy(self, source: Model, destination: ModelName) -> None:
        """Let a second name mean the same. (The bundled model is imported instead: see importer.)"""
        path = self.manifest(source.name)
        if path is None:
            raise ModelNotFound(f"model '{source.name}' not found", model=str(source.name))
        self.write_manifest(destination, path.read_bytes())

    def delete(self, model: Model) -> None:
        """Forget a name, and remove the blobs that no other name needs."""
        path = self.manifest(model.name)
        if path is None:
            raise ModelNotFound(f"model '{model.name}' not found", model=str(model.name))
        mine = self._references(path)
        path.unlink()
        for parent in list(path.parents)[:3]:
            with contextlib.suppress(OSError):
                parent.rmdir()  # only if it is empty now
        try:
            used = {ref for _, other in self.manifest_files() for ref in self._references(other)}
        except CorruptManifest:
            return  # somebody's blobs are not known: remove none
        for digest in mine - used:
            self.blob(digest).unlink(missing_ok=True)

    def _references(self, path: Path) -> set[str]:
        manifest = _json(path.read_bytes())
        try:
            entries = [manifest["config"], *(manifest.get("layers") or [])]
            return {_digest_of(each) for each in entries}
        except (KeyError, TypeError, AttributeError):
            raise CorruptManifest("unexpected EOF") from None
