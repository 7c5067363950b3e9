"""Fixtures for pytest: an Ollama that pretends, for tests of applications that use ollama_adapter.

pytest loads this module in every run where the package is installed, so it stands alone and imports the
package only when a fixture is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any  # noqa: TID251 - what it names is not imported, on purpose

import pytest

if TYPE_CHECKING:
    from ollama_adapter import Config
    from ollama_adapter.testing import BackgroundOllama

MARKER = "pretend_ollama"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{MARKER}(*models, faults='', token_s=0.0, ...): what the fixture of that name is made with",
    )


@pytest.fixture
def start_pretend_ollama() -> Iterator[Callable[..., BackgroundOllama]]:
    """Call it for a daemon with arguments of your own, as often as you need one; they end with the test."""
    from ollama_adapter.testing import BackgroundOllama

    with ExitStack() as stack:

        def start(*models: Any, **options: Any) -> BackgroundOllama:
            return stack.enter_context(BackgroundOllama(*models, **options))

        yield start


@pytest.fixture
def pretend_ollama(
    request: pytest.FixtureRequest, start_pretend_ollama: Callable[..., BackgroundOllama]
) -> BackgroundOllama:
    """A daemon for one test. `@pytest.mark.pretend_ollama(...)` gives its arguments."""
    marker = request.node.get_closest_marker(MARKER)
    if marker is None:
        return start_pretend_ollama()
    return start_pretend_ollama(*marker.args, **marker.kwargs)


@pytest.fixture
def ollama_config(pretend_ollama: BackgroundOllama) -> Config:
    """The Config to reach it: `OllamaAdapter(ollama_config)`."""
    return pretend_ollama.config


@pytest.fixture
def ollama_environment(
    pretend_ollama: BackgroundOllama, monkeypatch: pytest.MonkeyPatch
) -> BackgroundOllama:
    """The same for an application that is told nothing: OllamaAdapter() and ollama.Client() find it."""
    monkeypatch.setenv("OLLAMA_HOST", f"127.0.0.1:{pretend_ollama.port}")
    monkeypatch.setenv("OLLAMA_ADAPTER_DAEMON_MODE", "adopt")
    return pretend_ollama
