"""What is asked and answered is in no log, no file, no command line and no error."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from ollama_adapter.embedded import child
from ollama_adapter.embedded.records import Answer
from ollama_adapter.embedded.requests import parse_asked
from tests.embedded import daemons

CANARY = "CanaryPromptNobodyMaySee"


def ask_in_every_way(daemon: daemons.Daemon) -> None:
    word = {"enum": [CANARY]}
    answer = daemon.generate(CANARY, format=word, stream=False)
    assert CANARY in answer.json["response"]
    daemon.chat(CANARY, format=word)
    daemon.chat(CANARY, CANARY, CANARY, options={"num_ctx": 16, "num_predict": 2})
    daemon.generate(CANARY * 50, truncate=False, options={"num_ctx": 64})
    daemon.ask("/api/embed", {"model": "embed", "input": CANARY})
    daemon.ask("/api/embed", {"model": "tiny", "input": CANARY})
    daemon.generate(CANARY, format={"type": "string", "pattern": f"({CANARY}"})
    daemon.ask("/api/generate", f'{{"model": "tiny", "prompt": "{CANARY}'.encode())
    daemon.ask("/api/chat", {"model": "tiny", "messages": [{"role": CANARY, "content": [CANARY]}]})
    ids = [*CANARY.encode()]
    daemon.generate("", raw=True, prompt_tokens=[*ids, 10**9])
    daemon.generate(CANARY, continue_tokens=ids, options={"num_predict": 2})
    daemon.generate(CANARY, continue_tokens=ids * 100, options={"num_ctx": 64})
    body = {"model": "tiny", "prompt": CANARY, "format": {"type": "string", "minLength": 10**6}}
    with daemon.streaming({**body, "options": {"num_predict": 5000}}) as stream:
        stream.line()
        for each in daemon.runners():
            assert CANARY not in " ".join([*each.cmdline(), *each.environ().values()])
            each.kill()
        while "error" not in stream.line():
            pass


def test_nothing_said_is_kept_anywhere(store_root: Path, tmp_path: Path) -> None:
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with daemons.running(store_root, **places) as daemon:
        ask_in_every_way(daemon)
        cmdline = " ".join(psutil.Process(daemon.process.pid).cmdline())
        daemon.process.terminate()
        _, said = daemon.process.communicate(timeout=daemons.WATCHDOG_S)
    assert said == b""
    assert CANARY not in cmdline
    for root in (tmp_path, store_root):
        for path in root.rglob("*"):
            assert CANARY not in path.name
            assert not path.is_file() or CANARY.encode() not in path.read_bytes()


def test_no_repr_tells() -> None:
    body = {"model": "m", "prompt": CANARY, "options": {"stop": [CANARY]}, "system": CANARY}
    asked = parse_asked(json.dumps(body).encode(), chat=False)
    assert CANARY not in repr(asked)
    assert CANARY not in repr(Answer("m", chat=False, top=None))


@pytest.mark.anyio
async def test_what_a_runner_prints_is_forgotten_once_it_is_ready(files: Path) -> None:
    import asyncio

    spec = child.Spec(files / "tiny.gguf", 64, 64, 1, -1, True, False, 1)
    async with asyncio.TaskGroup() as group:
        runner = await child.Runner.start(spec, group)
        assert runner._tail is None
        assert repr(runner) == f"<Runner pid {runner.pid}>"
        await runner.stop()
