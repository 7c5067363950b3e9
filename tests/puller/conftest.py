"""A registry, a store, and a puller between them."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ollama_adapter.config import PoolConfig
from ollama_adapter.core.backoff import BackoffPolicy
from ollama_adapter.puller.flight import Patience
from ollama_adapter.puller.pull import Puller
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.scope import TaskScope
from tests.registry.serving import Registry, running

WATCHDOG_S = 60.0
QUICK = Patience(stall_s=5.0, backoff=BackoffPolicy(base_s=0.01, cap_s=0.02, tries=4), look_s=0.01)
Make = Callable[..., Puller]


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running() as registry:
        yield registry


@pytest.fixture
def store() -> Iterator[Path]:
    """Where whoever is in the jail can be sent: a directory that everybody may enter."""
    with tempfile.TemporaryDirectory(prefix="store-") as name:
        Path(name).chmod(0o755)
        yield Path(name) / "models"


@pytest.fixture
def homes() -> Iterator[Path]:
    """Where whoever is on a stage gets a home (tests/system/jail/stage.py)."""
    with tempfile.TemporaryDirectory(prefix="homes-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture
async def make(store: Path, registry: Registry) -> AsyncIterator[Make]:
    """Pullers of one scope, which trust the registry of the test."""
    scope = TaskScope()

    def puller(**changes: Any) -> Puller:
        config = PoolConfig(registries=changes.pop("registries", (registry.host,)))
        options: dict[str, Any] = {"patience": QUICK, "chance": lambda: 1.0, **changes}
        place = options.pop("store", store)
        return Puller(place, config, scope, SystemClock(), **options)

    with anyio.fail_after(WATCHDOG_S):
        try:
            yield puller
        finally:
            await scope.aclose()
