"""A runner that cannot run: whatever it does instead, the daemon learns why, and nothing is left."""

from __future__ import annotations

import asyncio
import functools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest

from ollama_adapter.embedded import child, starter
from ollama_adapter.embedded.orders import Orders, Plain, Start
from ollama_adapter.embedded.values import ApiError
from ollama_adapter.system.jail import landlock
from ollama_adapter.system.jail.paths import gpu_devices

pytestmark = pytest.mark.anyio


Launch = Callable[[str], AbstractAsyncContextManager[Start]]


@pytest.fixture(params=["by itself", "by an order"])
def launch(request: pytest.FixtureRequest, tmp_path: Path) -> Launch:
    """Both ways in which a daemon gets a runner; this one is a script."""

    @asynccontextmanager
    async def launching(script: str) -> AsyncIterator[Start]:
        path = tmp_path / "runner.py"
        path.write_text(script)
        command = [sys.executable, "-P", str(path)]
        if request.param == "by itself":
            yield functools.partial(Plain.start, command=command)
            return
        if (begun := starter.begin(*command)) is None:
            pytest.skip("a starter needs Linux")
        orders = Orders(*begun)
        orders.attach(lambda: pytest.fail("the starter ended"))
        try:
            yield orders.start
        finally:
            orders.close()

    return launching


async def start(script: str, tmp_path: Path, launch: Launch) -> child.Runner:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"x")
    spec = child.Spec(model, 64, 64, 0, -1, True, False, 1)
    async with launch(script) as begin, asyncio.TaskGroup() as group:
        return await child.Runner.start(spec, group, begin)


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
async def test_the_reason_is_told(script: str, words: str, tmp_path: Path, launch: Launch) -> None:
    with pytest.raises(ExceptionGroup) as group:
        await start(script, tmp_path, launch)
    (error,) = group.value.exceptions
    assert isinstance(error, ApiError)
    assert error.status == 500
    assert words in error.message


LATE = """
import sys, time
print('{"error": "see the log"}', flush=True)
for piece in ("0.00.1 E x: error load", "ing model: a bad", " tensor\\n"):
    time.sleep(0.1)
    sys.stderr.write(piece)
    sys.stderr.flush()
time.sleep(600)
"""


async def test_a_log_that_comes_later_than_the_report_is_waited_for(
    tmp_path: Path, launch: Launch
) -> None:
    with pytest.raises(ExceptionGroup) as group:
        await start(LATE, tmp_path, launch)
    assert str(group.value.exceptions[0]).endswith("error loading model: a bad tensor")


async def test_a_load_that_is_cancelled_ends_its_process(tmp_path: Path, launch: Launch) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await start("import threading; threading.Event().wait()", tmp_path, launch)


async def test_noise_does_not_block_it(tmp_path: Path, launch: Launch) -> None:
    noise = "import sys; sys.stderr.write('x' * 10_000_000); print('{\"error\": \"done\"}')"
    with pytest.raises(ExceptionGroup) as group:
        await start(noise, tmp_path, launch)
    assert "done" in str(group.value.exceptions[0])


async def test_a_program_that_cannot_be_started_is_told(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    spec = child.Spec(tmp_path, 64, 64, 0, -1, True, False, 1)
    async with asyncio.TaskGroup() as group:
        with pytest.raises(ApiError, match="error starting the model runner"):
            await child.Runner.start(spec, group, functools.partial(Plain.start, command=[nowhere]))
    if (begun := starter.begin(nowhere)) is not None:
        orders = Orders(*begun)
        orders.attach(lambda: pytest.fail("the starter ended"))
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.TaskGroup() as group:
                await child.Runner.start(spec, group, orders.start)
        orders.close()
        assert "exit status 127" in str(caught.value.exceptions[0])


@pytest.mark.skipif(sys.platform != "linux", reason="there is no seal elsewhere")
def test_the_engine_begins_no_thread_when_it_is_imported() -> None:
    """It is imported before there is a model: a thread of it would not be kept to its files (seal)."""
    code = "import os, xllamacpp; print(len(os.listdir('/proc/self/task')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"


ENGINE = """
from types import SimpleNamespace
class CommonParams(SimpleNamespace):
    def __init__(self):
        super().__init__(model=SimpleNamespace(), cpuparams=SimpleNamespace(), cpuparams_batch=SimpleNamespace())
def opened(path, mode):
    try:
        open(path, mode).close()
    except PermissionError:
        return "no"
    return "yes"
def Server(params):
    model = params.model.path
    tries = [(model, "rb"), (model, "ab"), (model + ".key", "rb"), (model + ".new", "wb"), (__file__, "rb")]
    raise RuntimeError(" ".join(opened(*each) for each in tries))
"""


async def test_a_runner_reads_its_model_and_its_engine_and_no_other_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine that has been taken over by the model that it parses."""
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine/xllamacpp.py").write_text(ENGINE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "engine"))
    for name in ("model", "model.key"):
        (tmp_path / name).write_bytes(b"x")
    spec = child.Spec(tmp_path / "model", 64, 64, 0, -1, True, False, 1)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            await child.Runner.start(spec, group)
    confined = sys.platform == "linux" and landlock.abi() and not gpu_devices()
    expected = "yes no no no yes" if confined else "yes yes yes yes yes"
    assert f"error loading model: {expected}" in str(caught.value.exceptions[0])


@pytest.mark.parametrize("broken", ["", "raise OSError('no such library')"])
async def test_what_an_engine_prints_or_raises_when_it_is_imported_is_told(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "xllamacpp.py").write_text(
        f"import os; os.write(1, b'a banner' + bytes([10]))\n{broken}\n"
        "def CommonParams(): raise ValueError('it is here')"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model").write_bytes(b"x")
    spec = child.Spec(tmp_path / "model", 64, 64, 0, -1, True, False, 1)
    with pytest.raises(ExceptionGroup) as caught:
        async with asyncio.TaskGroup() as group:
            await child.Runner.start(spec, group)
    expected = "no such library" if broken else "it is here"
    assert f"error loading model: {expected}" in str(caught.value.exceptions[0])
