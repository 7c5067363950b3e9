"""A machine of its own for every module: a fresh home, nothing inherited that could steer a daemon."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.canary import Everything

KEPT = ("PATH", "PYTHONPATH", "PYTHONPYCACHEPREFIX", "PYTHONDONTWRITEBYTECODE", "LD_LIBRARY_PATH")


@pytest.fixture(scope="module")
def machine() -> Iterator[Path]:
    """The home directory; `os.environ` is as empty as that of a new user.

    It lies where everybody may go, as homes do: root's daemon becomes somebody else.
    """
    with tempfile.TemporaryDirectory(prefix="machine-") as name:
        Path(name).chmod(0o755)
        yield from _machine(Path(name))


def _machine(place: Path) -> Iterator[Path]:
    home, scratch = place / "home", place / "tmp"
    home.mkdir()
    scratch.mkdir()
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update({name: before[name] for name in KEPT if name in before})
    os.environ["HOME"] = str(home)
    # A developer's own Ollama is not what is tested here.
    os.environ["OLLAMA_ADAPTER_DAEMON_MODE"] = "embedded"
    os.environ["TMPDIR"] = str(scratch)
    yield home
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def log() -> Iterator[Everything]:
    """All that anybody logs, at every level."""
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)
