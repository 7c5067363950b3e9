"""A runner that cannot run: whatever it does instead, the daemon learns why, and nothing is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from ollama_adapter.embedded import child
from ollama_adapter.embedded.values import ApiError

pytestmark = pytest.mark.anyio


async def start(script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> child.Runner:
    path = tmp_path / "runner.py"
    path.write_text(script)
    monkeypatch.setattr(child, "_RUNNER", path)
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    spec = child.Spec(model, 64, 64, 0, -1, True, False, 1)
    async with asyncio.TaskGroup() as group:
        return await child.Runner.start(spec, group)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGILL)",
            "there is no engine for this CPU",
        ),
        (
            "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
            "signal 9: unable to load model",
        ),
        ("import sys; sys.exit(3)", "exit status 3: unable to load model"),
        ('print(\'{"error": "some reason"}\'); raise SystemExit(1)', "exit status 1: some reason"),
        (
            "import sys; sys.stderr.write('0.00.1 E x: error loading model: bad'); sys.exit(1)",
            "error loading model: bad",
        ),
    ],
)
async def test_the_reason_is_told(
    script: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ExceptionGroup) as group:
        await start(script, tmp_path, monkeypatch)
    (error,) = group.value.exceptions
    assert isinstance(error, ApiError)
    assert error.status == 500
    assert words in error.message


async def test_a_load_that_is_cancelled_ends_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await start("import threading; threading.Event().wait()", tmp_path, monkeypatch)


async def test_noise_does_not_block_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = "import sys; sys.stderr.write('x' * 10_000_000); print('{\"error\": \"done\"}')"
    with pytest.raises(ExceptionGroup) as group:
        await start(noise, tmp_path, monkeypatch)
    assert "done" in str(group.value.exceptions[0])
