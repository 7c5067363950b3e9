"""A disk without room: said before anything comes, or when it fills up meanwhile; for real, each time."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.core.registry import MODEL_LAYER
from ollama_adapter.errors import PullFailed
from ollama_adapter.system.jail import levels
from tests.puller.conftest import Make
from tests.registry.serving import Registry

ROOT = Path(__file__).parents[2]
MOUNTS = not levels.probe().namespaces
"""Whether file systems of our own can be had here; else a limit on files has to do."""
WATCHDOG_S = 90


@pytest.fixture
def place() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cramped-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def cramped(place: Path, way: str) -> dict[str, Any]:
    argv = [sys.executable, "-m", "tests.puller.cramped", str(place), way]
    done = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG_S, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.anyio
async def test_what_no_disk_holds_is_refused_with_the_numbers_before_it_is_asked_for(
    registry: Registry, make: Make
) -> None:
    size = 1 << 42
    layers = [{"mediaType": MODEL_LAYER, "digest": "sha256:" + "1" * 64, "size": size}]
    name = registry.add("big", b"x", changed={"layers": layers})
    with pytest.raises(PullFailed, match=f"{size:,}"[:9]) as caught:
        await make().pull(name)
    assert "are free there" in str(caught.value)
    assert "free some space" in caught.value.hint
    assert registry.served == []


@pytest.mark.parametrize("way", ["small"] if MOUNTS else ["limited"])
def test_a_small_disk_is_seen_beforehand(way: str, place: Path) -> None:
    told = cramped(place, way)
    assert told["error"].startswith("PullFailed: ")
    assert told["blobs asked for"] == (0 if way == "small" else 1)
    assert told["models"] == 0


@pytest.mark.parametrize("way", ["filled", "limited"] if MOUNTS else ["limited"])
def test_a_disk_that_fills_up_meanwhile_ends_the_pull_and_not_what_has_come(
    way: str, place: Path
) -> None:
    told = cramped(place, way)
    assert told["error"].startswith("PullFailed: the disk does not take it: ")
    assert "free some space" in told["hint"]
    if way == "filled":
        assert "No space left" in told["error"]
        assert told["lost"] <= (8 << 20) // 100
        assert told["models"] == 1
    else:
        assert "File too large" in told["error"]
        assert told["models"] == 0
