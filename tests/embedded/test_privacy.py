"""What is asked and answered is in no log, no file, no command line and no error."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest

from ollama_adapter.embedded import child
from ollama_adapter.embedded.records import Answer
from ollama_adapter.embedded.requests import parse_asked
from tests.canary import ANSWER, CHOICE, PROMPT, assert_absent, search_files, search_processes
from tests.embedded import daemons


def ask_in_every_way(daemon: daemons.Daemon) -> None:
    answer = daemon.generate(PROMPT, format=CHOICE, stream=False)
    assert ANSWER in answer.json["response"]
    daemon.chat(PROMPT, format=CHOICE)
    daemon.chat(PROMPT, PROMPT, PROMPT, options={"num_ctx": 16, "num_predict": 2})
    daemon.generate(PROMPT * 50, truncate=False, options={"num_ctx": 64})
    daemon.ask("/api/embed", {"model": "embed", "input": PROMPT})
    daemon.ask("/api/embed", {"model": "tiny", "input": PROMPT})
    daemon.generate(PROMPT, format={"type": "string", "pattern": f"({PROMPT}"})
    daemon.ask("/api/generate", f'{{"model": "tiny", "prompt": "{PROMPT}'.encode())
    daemon.ask("/api/chat", {"model": "tiny", "messages": [{"role": PROMPT, "content": [PROMPT]}]})
    ids = [*PROMPT.encode()]
    daemon.generate("", raw=True, prompt_tokens=[*ids, 10**9])
    daemon.generate(PROMPT, continue_tokens=ids, options={"num_predict": 2})
    daemon.generate(PROMPT, continue_tokens=ids * 100, options={"num_ctx": 64})
    body = {"model": "tiny", "prompt": PROMPT, "format": {"type": "string", "minLength": 10**6}}
    with daemon.streaming({**body, "options": {"num_predict": 5000}}) as stream:
        stream.line()
        runners = daemon.runners()
        assert search_processes([psutil.Process(daemon.process.pid), *runners]) >= 2
        for each in runners:
            each.kill()
        while "error" not in stream.line():
            pass


def test_nothing_said_is_kept_anywhere(store_root: Path, tmp_path: Path) -> None:
    places = {"HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    with daemons.running(store_root, **places) as daemon:
        ask_in_every_way(daemon)
        daemon.process.terminate()
        _, said = daemon.process.communicate(timeout=daemons.WATCHDOG_S)
    assert said == b""
    assert search_files(tmp_path, store_root) > 0


def test_no_repr_tells() -> None:
    body = {"model": "m", "prompt": PROMPT, "options": {"stop": [PROMPT]}, "system": PROMPT}
    asked = parse_asked(json.dumps(body).encode(), chat=False)
    assert_absent(f"{asked!r} {Answer('m', chat=False, top=None)!r}".encode(), "a repr")


@pytest.mark.anyio
async def test_what_a_runner_prints_is_forgotten_once_it_is_ready(files: Path) -> None:
    import asyncio

    spec = child.Spec(files / "tiny.gguf", 64, 64, 1, -1, True, False, 1)
    async with asyncio.TaskGroup() as group:
        runner = await child.Runner.start(spec, group)
        assert runner._log is None
        assert repr(runner) == f"<Runner pid {runner.pid}>"
        await runner.stop()
