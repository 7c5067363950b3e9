"""Where models lie on the disk, in Ollama's own layout, and how something is put there.

    blobs/sha256-<hex>                          layers and configs, named by their content
    manifests/<host>/<namespace>/<model>/<tag>  what a name means

Writes are atomic: blobs first, the manifest last, each by a temporary file and a rename. Nothing is
created before something is written.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from ollama_adapter.core.names import ModelName, parse_name

UNWRITABLE_HINT: Final = "set OLLAMA_MODELS to a directory that you may write, with room in it"


class Layout:
    """The directories of one store. It keeps nothing open."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.manifests = root / "manifests"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.root}>"

    def unwritable(self, error: OSError) -> str:
        """What to say of a failure to put something here; UNWRITABLE_HINT says what to do."""
        reason = error.strerror or type(error).__name__
        return f"nothing can be put into the model store {self.root}: {reason}"

    def check_writable(self) -> None:
        """Raises OSError where no blob could be put here; makes the directory for them."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        if not os.access(self.blobs, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written", str(self.blobs))

    def blob(self, digest: str) -> Path:
        """Where the blob `sha256:<hex>` is, or would be."""
        return self.blobs / digest.replace(":", "-", 1)

    def manifest(self, name: ModelName) -> Path | None:
        """The file that says what `name` means, whatever its case; None where there is none."""
        path = self.manifest_path(name)
        if path.is_file():
            return path
        return next((file for each, file in self.manifest_files() if each.key == name.key), None)

    def manifest_path(self, name: ModelName) -> Path:
        """Where it is written where there is none."""
        return self.manifests / name.host / name.namespace / name.model / name.tag

    def manifest_files(self) -> Iterator[tuple[ModelName, Path]]:
        """Every name of the store, and its file."""
        for path in sorted(self.manifests.glob("*/*/*/*")):
            with contextlib.suppress(ValueError):
                if path.is_file():
                    host, namespace, model, tag = path.relative_to(self.manifests).parts
                    yield parse_name(f"{host}/{namespace}/{model}:{tag}"), path

    def put(self, data: bytes) -> str:
        """A blob of these bytes; its digest."""
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        target = self.blob(digest)
        if not target.is_file():
            with self.temporary_blob() as path:
                path.write_bytes(data)
                path.replace(target)
        return digest

    @contextlib.contextmanager
    def temporary_blob(self) -> Iterator[Path]:
        """A path to write a new blob to, and to move away; whatever is left there is removed."""
        self.blobs.mkdir(parents=True, exist_ok=True)
        path = self.blobs / f"sha256-{secrets.token_hex(32)}-partial"  # Ollama sweeps up such names
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)

    def write_manifest(self, name: ModelName, data: bytes) -> None:
        """From now on `name` means this; its blobs are there already."""
        target = self.manifest(name) or self.manifest_path(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.temporary_blob() as path:
            path.write_bytes(data)
            path.replace(target)
