"""A machine of its own for every module: a fresh home, nothing inherited that could steer a daemon."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

KEPT = ("PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home directory; `os.environ` is as empty as that of a new user."""
    home = tmp_path_factory.mktemp("home")
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: before[name] for name in KEPT if name in before})
    os.environ["HOME"] = str(home)
    # A developer's own Ollama is not what is tested here.
    os.environ["OLLAMA_ADAPTER_DAEMON_MODE"] = "embedded"
    os.environ["TMPDIR"] = str(tmp_path_factory.mktemp("tmp"))
    yield home
    os.environ.clear()
    os.environ.update(before)
