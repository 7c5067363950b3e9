"""Our own daemon, front and runner, answers from inside every level."""

from __future__ import annotations

import asyncio
import contextlib
import json
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from ollama_adapter.errors import NotSandboxed, TransportError
from ollama_adapter.system import settings
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.fetching import fetch
from ollama_adapter.system.http import encode_request
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import Child, spawn
from tests.system.jail import cells
from tests.system.jail.grounds import ROOT

pytestmark = pytest.mark.anyio
VERSION = encode_request("GET", "/api/version")


@pytest.fixture
def base() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        Path(name).chmod(0o755)
        for each in ("home", "models"):
            Path(name, each).mkdir()
        yield Path(name)


async def ready(child: Child) -> None:
    while True:
        assert not child.exited.done(), child.exited.result().tail
        with contextlib.suppress(TransportError):
            answer = await fetch(child.dial, VERSION, connect_s=5, answer_s=5)
            assert answer.status == 200, answer.body
            return
        await asyncio.get_running_loop().run_in_executor(None, lambda: None)


def filters(process: psutil.Process) -> int:
    """How many filters of system calls it is bound to."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (number,) = (each.split()[1] for each in lines if each.startswith("Seccomp_filters"))
    return int(number)


def assert_each_keeps_to_its_part(pid: int) -> None:
    """Starter and runner are children of the one that sees prompts, and it may start no other."""
    front = psutil.Process(pid)
    (starter,) = front.children()
    (runner,) = starter.children()
    assert starter.cmdline()[-2].endswith("starter.py")
    assert any(each.endswith("runner.py") for each in runner.cmdline())
    assert filters(front) == filters(starter) + 1, "the front has not given anything up"
    assert filters(runner) == filters(starter) + 1, "the runner has not sealed itself"


@asynccontextmanager
async def jailed(level: Level, base: Path) -> AsyncIterator[Child | None]:
    """The daemon, ready; None where this level cannot be had here, for a reason that is known."""
    argv = settings.embedded_command()
    port = find_free_port()
    home, models = str(base / "home"), str(base / "models")
    environment = {
        "HOME": home,
        "OLLAMA_HOST": f"127.0.0.1:{port}",
        "OLLAMA_MODELS": models,
        "PATH": "/usr/bin:/bin",
    }
    policy = daemon_policy(level, argv, home=home, models=models, port=port)
    async with cells.scope() as owner:
        try:
            child = await spawn(argv, environment, "/", owner, policy)
        except NotSandboxed as refusal:
            lacking = getattr(levels.probe(), {"guard": "notify"}.get(level, level), "")
            out_of_reach = ROOT and "Permission denied" in str(refusal)  # Python in root's own home
            assert lacking or out_of_reach, refusal
            yield None
            return
        assert child.level is level
        await ready(child)
        yield child


async def answer_of(child: Child) -> str:
    question = {"model": "tinydoc", "prompt": "What does len do?", "stream": False}
    body = json.dumps({**question, "options": {"num_predict": 8}}).encode()
    request = encode_request("POST", "/api/generate", body)
    answer = await fetch(child.dial, request, connect_s=5, answer_s=60)
    assert answer.status == 200, answer.body
    return str(json.loads(answer.body)["response"])


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.GUARD, Level.PARTIAL])
async def test_the_embedded_daemon_answers_in_its_jail(level: Level, base: Path) -> None:
    async with jailed(level, base) as child:
        if child is not None:
            assert await answer_of(child)
            assert_each_keeps_to_its_part(child.pid)
            exit_ = await child.stop(10.0)
            assert exit_.returncode == 0, exit_.tail


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.GUARD, Level.PARTIAL])
async def test_without_its_starter_the_daemon_ends_and_nobody_is_left(
    level: Level, base: Path
) -> None:
    async with jailed(level, base) as child:
        if child is not None:
            assert await answer_of(child)
            front = psutil.Process(child.pid)
            family = [front, *front.children(recursive=True)]
            assert len(family) == 3
            front.children()[0].kill()
            exit_ = await child.exited
            assert exit_.returncode == 1, exit_
            _, left = psutil.wait_procs(family, timeout=30)
            assert not left
