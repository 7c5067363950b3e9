"""One daemon for most tests: starting it costs more than what they ask of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from ollama_adapter.embedded.importer import import_gguf
from tests.embedded import daemons, ggufs


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of GGUF files."""
    root = tmp_path_factory.mktemp("ggufs")
    ggufs.write(root / "tiny.gguf")
    ggufs.write(root / "bare.gguf", template=None, seed=2)
    ggufs.write(root / "embed.gguf", pooling=1, seed=3, context=128)
    ggufs.write(root / "tools.gguf", template=ggufs.TOOLS, seed=4)
    (root / "parrot.gguf").write_bytes(ggufs.parrot())
    (root / "odd.gguf").write_bytes(ggufs.odd())
    broken = (
        (root / "tiny.gguf").read_bytes().replace(b"blk.0.attn_q.weight", b"blk.0.attn_x.weight")
    )
    (root / "broken.gguf").write_bytes(broken)
    return root


@pytest.fixture(scope="session")
def store_root(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every model of `files`."""
    root = tmp_path_factory.mktemp("models")
    for path in sorted(files.glob("*.gguf")):
        import_gguf(path, path.stem, root)
    return root


@pytest.fixture(scope="session")
def daemon(store_root: Path) -> Iterator[daemons.Daemon]:
    """The shared daemon. A test that changes the store uses names of its own."""
    with daemons.running(store_root, OLLAMA_MAX_LOADED_MODELS="6") as running:
        yield running
