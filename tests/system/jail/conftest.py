"""What tests with a stage of their own share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def homes() -> Iterator[Path]:
    """Where whoever is on a stage gets a home: a directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="homes-") as name:
        Path(name).chmod(0o755)
        yield Path(name)
