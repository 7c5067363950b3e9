"""What of ours lies on the disk: sizes are those of files, each counted once, and no link leads out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ollama_adapter.config import DaemonConfig
from ollama_adapter.system.belongings import Belonging, in_use, remove, survey


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in list(os.environ):
        if name.startswith(("XDG_", "OLLAMA")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def fill(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def parts(**config: str) -> dict[str, Belonging]:
    """Those that are there."""
    known = survey(DaemonConfig(**config))  # type: ignore[arg-type]
    return {each.name: each for each in known if each.paths}


def test_a_file_with_two_names_is_counted_once(home: Path) -> None:
    store = home / ".local/share/ollama-adapter/models"
    blob = fill(store / "blobs/sha256-aa", 1_000)
    os.link(blob, store / "blobs/sha256-bb")
    fill(store / "manifests/h/n/m/t", 10)
    found = parts()["models"]
    assert (found.files, found.size_bytes, found.ours) == (2, 1_010, True)


def test_a_configured_store_is_not_ours(home: Path) -> None:
    fill(home / "shared/manifests/h/n/m/t", 10)
    fill(home / "shared/.pulling/key/blob", 20)
    found = parts(models_dir=str(home / "shared"))
    assert not found[str(home / "shared")].ours
    assert (found["downloads"].size_bytes, found["downloads"].ours) == (20, True)


def test_a_fifo_and_a_socket_are_no_content(home: Path) -> None:
    private = home / ".local/state/ollama-adapter/home"
    private.mkdir(parents=True)
    os.mkfifo(private / "pipe")
    assert parts()["home"].size_bytes == 0
    remove(parts()["home"])
    assert not private.exists()


def test_blobs_that_are_a_link_are_left_where_they_are(home: Path) -> None:
    blobs = fill(home / "large/sha256-aa-partial", 1_000).parent
    store = home / ".local/share/ollama-adapter/models"
    store.mkdir(parents=True)
    (store / "blobs").symlink_to(blobs)
    assert parts()["models"].size_bytes == 0 and "downloads" not in parts()
    remove(parts()["models"])
    assert not store.exists() and (blobs / "sha256-aa-partial").exists()


def test_what_is_gone_already_is_no_fault(home: Path) -> None:
    fill(home / ".local/state/ollama-adapter/home/x", 1)
    found = parts()["home"]
    remove(found)
    remove(found)
    assert not in_use(found) and parts() == {}
