"""The daemon in a thread of its own, and the fixtures that pytest finds by the entry point."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from ollama_adapter import BlockingAdapter, OllamaAdapter
from ollama_adapter.config import Config
from ollama_adapter.errors import AdapterError, ConfigError, StreamInterrupted
from ollama_adapter.testing import BackgroundOllama, Faults, Phase

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def test_an_application_without_async_is_served() -> None:
    with BackgroundOllama() as daemon, BlockingAdapter(daemon.config) as adapter:
        assert len(adapter.generate("pretend", "hello").text.split()) == 64
        daemon.faults = "eof@5"
        with pytest.raises(StreamInterrupted):
            list(adapter.generate_stream("pretend", "hello"))
        assert daemon.faults == Faults.parse("eof@5")
        assert {str(each) for each in daemon.struck} == {"eof@5"}
        assert daemon.alive
        assert daemon.residents == ["pretend:latest"]


def test_an_abort_is_seen() -> None:
    with BackgroundOllama(faults="stall@5") as daemon, BlockingAdapter(daemon.config) as adapter:
        with adapter.generate_stream("pretend", "hello") as stream:
            assert [next(stream).index for _ in range(5)] == list(range(5))
        daemon.until(lambda: daemon.dropped == 1)
        (generation,) = daemon.generations()
        assert (generation.phase, generation.sent) == (Phase.DROPPED, 5)
    assert "hello" not in repr(daemon)


def test_it_goes_away_and_comes_back() -> None:
    with BackgroundOllama() as daemon:
        port = daemon.port
        daemon.die()
        assert not daemon.alive
        daemon.revive()
        assert (daemon.alive, daemon.port, daemon.connections) == (True, port, 0)
        assert daemon.requests == []


def test_waiting_has_an_end() -> None:
    with BackgroundOllama() as daemon, pytest.raises(TimeoutError):
        daemon.until(lambda: daemon.dropped == 1, timeout_s=0.01)


def test_a_fault_that_cannot_be_read_leaves_no_thread() -> None:
    with pytest.raises(ConfigError):
        BackgroundOllama(faults="nonsense")
    with BackgroundOllama() as daemon, pytest.raises(ConfigError):
        daemon.faults = "nonsense"
    assert not [each for each in threading.enumerate() if "pretended" in each.name]


# The fixtures, as the users of the package have them


def test_the_fixtures_need_no_import(
    pretend_ollama: BackgroundOllama, ollama_config: Config
) -> None:
    assert ollama_config == pretend_ollama.config
    with BlockingAdapter(ollama_config) as adapter:
        assert adapter.generate("pretend", "hello").text


@pytest.mark.anyio
async def test_the_fixtures_serve_async_tests(ollama_config: Config) -> None:
    async with OllamaAdapter(ollama_config) as adapter:
        assert (await adapter.generate("pretend", "hello")).text


@pytest.mark.anyio
@pytest.mark.pretend_ollama(faults="stall@5")
async def test_an_async_test_waits_without_holding_its_own_loop(
    pretend_ollama: BackgroundOllama,
) -> None:
    async with OllamaAdapter(pretend_ollama.config) as adapter:
        async with adapter.generate_stream("pretend", "hello") as stream:
            await anext(stream)
            await pretend_ollama.auntil(lambda: pretend_ollama.struck)
        await pretend_ollama.auntil(lambda: pretend_ollama.dropped == 1)
    with pytest.raises(TimeoutError):
        await pretend_ollama.auntil(lambda: pretend_ollama.dropped == 2, timeout_s=0.01)


def test_one_that_does_not_run_says_so() -> None:
    with pytest.raises(AdapterError, match="not running"):
        BackgroundOllama().die()


@pytest.mark.pretend_ollama("mine", faults="eof@3")
def test_a_marker_gives_the_fixture_its_arguments(pretend_ollama: BackgroundOllama) -> None:
    assert str(pretend_ollama.faults) == "eof@3"


def test_an_application_that_is_told_nothing_finds_it(
    ollama_environment: BackgroundOllama, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with BlockingAdapter() as adapter:
        assert adapter.generate("pretend", "hello").text
    assert len(ollama_environment.generations()) == 1


def test_the_plugin_imports_nothing_before_a_fixture_is_used(tmp_path: Path) -> None:
    (tmp_path / "test_nothing.py").write_text(
        "import sys\n"
        "def test_nothing(request):\n"
        "    assert request.config.pluginmanager.has_plugin('ollama_adapter')\n"
        "    assert not [each for each in sys.modules if each.startswith('ollama_adapter')]\n"
    )
    assert "1 passed" in run_pytest(tmp_path)


def test_the_examples_of_the_page_pass(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "testing.md").read_text("utf-8")
    blocks = [
        each for each in BLOCK.findall(page) if "\ndef test_" in each or "async def test_" in each
    ]
    for number, block in enumerate(blocks):
        (tmp_path / f"test_{number}.py").write_text(block, "utf-8")
    tests = sum(block.count("def test_") for block in blocks)
    assert tests >= 5
    assert f"{tests} passed" in run_pytest(tmp_path, "-p", "pytest_ollama_adapter", others=False)


def run_pytest(directory: Path, *arguments: str, others: bool = True) -> str:
    """The output of a run; `others`: with the plugins that are found by their entry points, as ours is."""
    environment = dict(os.environ) | ({} if others else {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"})
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, "."]
    done = subprocess.run(
        command,
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    return done.stdout + done.stderr
