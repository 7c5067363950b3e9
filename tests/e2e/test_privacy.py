"""The canary: a prompt and an answer that must not be found anywhere but in the caller's hands."""

from __future__ import annotations

import os
import signal
import traceback
from pathlib import Path

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.errors import AdapterError
from tests.canary import (
    ANSWER,
    CHOICE,
    ENDLESS,
    FORMS,
    PROMPT,
    Everything,
    assert_absent,
    search_files,
    search_processes,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("machine")]


def family() -> list[psutil.Process]:
    """The keeper, the daemon, its runners, and whoever stands between them."""
    return psutil.Process().children(recursive=True)


def shown(value: object) -> bytes:
    return f"{value} {value!r}".encode()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    for number, secret in enumerate(FORMS):
        (tmp_path / "found").write_bytes(b"x" * number + secret + b"x")
        with pytest.raises(AssertionError, match="found in"):
            search_files(tmp_path)


async def test_prompt_and_answer_are_nowhere_but_in_the_callers_hands(
    machine: Path, log: Everything
) -> None:
    config = Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED))
    errors: list[AdapterError] = []
    async with OllamaAdapter(config) as adapter:
        pid = (await adapter.health()).pid
        assert pid is not None
        # success
        answer = await adapter.generate("tinydoc", PROMPT, format=CHOICE, num_predict=200)
        assert ANSWER in answer.text
        for value in (answer, answer.statistics, adapter, adapter.pool, adapter.daemon):
            assert_absent(shown(value), type(value).__name__)
        # abort
        async with adapter.generate_stream("tinydoc", PROMPT, format=CHOICE) as stream:
            event = await anext(stream)
            assert_absent(shown(event) + shown(stream), "an event")
            assert search_processes(family()) >= 3
        # errors, before and in the middle of a stream
        requests = {
            "unknown": {},
            "tinydoc": {"num_ctx": 64, "system": PROMPT * 400},
        }
        for model, keywords in requests.items():
            with pytest.raises(AdapterError) as caught:
                await adapter.generate(model, PROMPT, **keywords)
            errors.append(caught.value)
        with pytest.raises(AdapterError) as ill:
            _ = adapter.generate_stream("tinydoc", PROMPT, format=PROMPT)
        errors.append(ill.value)
        # a crash of the runner
        stream = adapter.generate_stream("tinydoc", PROMPT, format=ENDLESS, num_predict=50_000)
        await anext(stream)
        os.kill(psutil.Process(pid).children()[0].pid, signal.SIGKILL)
        with pytest.raises(AdapterError) as crash:
            async for _ in stream:
                pass
        errors.append(crash.value)
        assert search_processes(family()) >= 2
    for error in errors:
        written = "".join(traceback.format_exception(error)) + error.hint + repr(vars(error))
        assert_absent(written.encode(), f"the traceback of {type(error).__name__}")
    assert log.search() > 0
    search_files(machine, Path(os.environ["TMPDIR"]), Path("/dev/shm"))
