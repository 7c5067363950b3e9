"""Puts GGUF files and new names into a store.

A file is checked before anything is created and hashed while it is copied; a failure at any point
leaves the store as it was.
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.core import gguf
from ollama_adapter.core.names import ModelName, parse_name
from ollama_adapter.embedded.store import TINYDOC_NAME, TINYDOC_NOTE, Model, Store, open_gguf
from ollama_adapter.errors import InvalidModelFile, InvalidRequest, PoolError
from ollama_adapter.system.store import UNWRITABLE_HINT

_CHUNK: Final = 1 << 20
_SPARE_BYTES: Final = 1 << 26
_DIGEST: Final = re.compile(r"sha256[:-][0-9a-fA-F]{64}")

Progress = Callable[[int, int], None]
"""Told the bytes done and the bytes in all."""

BUNDLED: Final = "tinydoc is part of the package and cannot be changed; it can be copied"


def import_gguf(
    path: Path, name: str, models_dir: Path, *, progress: Progress | None = None
) -> ModelName:
    """Copy a GGUF file into the store at `models_dir` as `name`; the full name it has now.

    Raises InvalidModelFile (with a hint) for a file that is no usable GGUF, InvalidRequest for a name
    that is none, PoolError when the store cannot be written or its disk is too full, OSError when the file
    cannot be read.
    """
    target = parse_name(name)
    if target.key == TINYDOC_NAME.key:
        raise InvalidRequest(BUNDLED, hint="give the model another name")
    store = Store(models_dir)
    header = _checked(path)
    try:
        digest = _copy_in(store, path, progress)
        store.write(target, describe_config(header), [("model", digest)])
    except OSError as error:
        if error.filename == str(path):  # it has gone since it was checked
            raise
        raise PoolError(store.unwritable(error), hint=UNWRITABLE_HINT) from error
    return target


def delete_model(name: str, models_dir: Path) -> None:
    """Remove a name, and its blobs where no other name needs them; raises ModelNotFound."""
    store = Store(models_dir, bundled=False)
    store.delete(store.find(parse_name(name)))


def list_models(models_dir: Path) -> list[Model]:
    """Every readable model of the store, the newest first, then the bundled one."""
    return Store(models_dir).models()


def _checked(path: Path) -> gguf.Header:
    if path.exists() and not path.is_file() and not path.is_dir():
        # To open a pipe is to wait for its writer, and no Ctrl-C ends that.
        raise InvalidModelFile(f"{path} is not a regular file", hint="copy it into one first")
    try:
        return gguf.parse(open_gguf(path))
    except IsADirectoryError:
        raise InvalidModelFile(f"{path} is a directory", hint="name a .gguf file") from None
    except InvalidModelFile as error:
        raise InvalidModelFile(f"{path}: {error}", hint=error.hint) from None


def _copy_in(store: Store, path: Path, progress: Progress | None) -> str:
    total = path.stat().st_size
    _check_space(store.root, total)
    seen = hashlib.sha256()
    done = 0
    with store.temporary_blob() as partial:
        with path.open("rb") as source, partial.open("wb") as copy:
            while chunk := source.read(_CHUNK):
                seen.update(chunk)
                copy.write(chunk)
                done += len(chunk)
                if progress is not None:
                    progress(done, total)
        digest = f"sha256:{seen.hexdigest()}"
        partial.replace(store.blob(digest))
    return digest


def _check_space(root: Path, needed: int) -> None:
    place = root
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + _SPARE_BYTES:
        raise PoolError(
            f"{needed >> 20} MiB are needed at {root}, and {free >> 20} MiB are free",
            hint="free some space, or set OLLAMA_MODELS to a directory on another disk",
        )


def describe_config(header: gguf.Header) -> dict[str, Any]:
    """The config blob of a model, as Ollama writes it."""
    return {
        "model_format": "gguf",
        "model_family": header.architecture,
        "model_families": [header.architecture],
        "model_type": gguf.human_count(header.parameters),
        "file_type": header.file_type,
        "architecture": "amd64",
        "os": "linux",
    }


def blob_of(store: Store, digest: str) -> Path:
    """The blob with this digest; ValueError where the text is no digest."""
    if not _DIGEST.fullmatch(digest):
        raise ValueError("invalid digest format")
    return store.blob("sha256:" + digest[7:].lower())


def create(
    store: Store, name: ModelName, source: Model | Path, wanted: Mapping[str, Any]
) -> list[str]:
    """Make `name` from a model or from a blob with a GGUF; the status lines to report.

    `wanted` are the fields of the request: template, system, license, parameters, messages. They
    replace what the source has, except parameters, which are merged into it.
    """
    if isinstance(source, Path):
        header, config_from, old = store.header(source), "", {"model": [source]}
    else:
        if source.weights is None:
            raise FileNotFoundError("model blob")
        header, config_from, old = store.header(source.weights), str(source.name), source.layers
    if isinstance(source, Model) and source.bundled:
        old = {"model": [store.blob(_copy_in(store, source.layers["model"][0], None))]}
        wanted = {"license": [TINYDOC_NOTE, *source.licenses()], **wanted}
    texts = _text_layers(wanted, {} if isinstance(source, Path) else source.parameters())
    layers = [
        (kind, path.name.replace("-", ":", 1))
        for kind, paths in old.items()
        if kind not in texts
        for path in paths
    ]
    lines = [f"using existing layer {digest}" for _, digest in layers]
    for kind, parts in texts.items():
        for part in parts:
            layers.append((kind, store.put(part)))
            lines.append(f"creating new layer {layers[-1][1]}")
    config = describe_config(header)
    if config_from:
        config["parent_model"] = config_from
    store.write(name, config, layers)
    return [*lines, "writing manifest", "success"]


def _text_layers(
    wanted: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, list[bytes]]:
    layers: dict[str, list[bytes]] = {}
    for kind in ("template", "system"):
        if wanted.get(kind):
            layers[kind] = [str(wanted[kind]).encode()]
    if wanted.get("license"):
        given = wanted["license"]
        layers["license"] = [
            str(x).encode() for x in (given if isinstance(given, list) else [given])
        ]
    if wanted.get("parameters"):
        layers["params"] = [msgspec.json.encode({**parameters, **wanted["parameters"]})]
    if wanted.get("messages"):
        layers["messages"] = [msgspec.json.encode(wanted["messages"])]
    return layers
