"""The canary: a prompt and an answer that must not be found anywhere but in the caller's hands."""

from __future__ import annotations

import base64
import logging
import os
import signal
import traceback
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.errors import AdapterError

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("machine")]

CANARY = "Zyxwv-qanary-7391-ß"
ANSWER = "kanarienvogel-4417"
CHOICE = {"type": "object", "properties": {"a": {"enum": [ANSWER]}}, "required": ["a"]}


def forms_of(secret: str) -> list[bytes]:
    """As it is, in UTF-16, base64 at each alignment, and escaped as JSON."""
    plain = secret.encode()
    encoded = [base64.b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3)]
    escaped = secret.encode("unicode_escape")
    return [plain, secret.encode("utf-16-le"), escaped, *encoded]


def assert_absent(data: bytes, where: str) -> None:
    for secret in (CANARY, ANSWER):
        for form in forms_of(secret):
            assert form not in data, f"found in {where}"


class Everything(logging.Handler):
    """Keeps every log record of the process, formatted."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.__dict__}")


@pytest.fixture
def log() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def search_files(*places: Path) -> int:
    searched = 0
    for place in places:
        for path in place.rglob("*"):
            if path.is_file():
                assert_absent(path.read_bytes(), str(path))
                searched += 1
    return searched


def search_processes(pid: int) -> None:
    for process in [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]:
        for name in ("cmdline", "environ"):
            try:
                data = Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:  # one that has just ended shows nothing any more
                alive = process.is_running() and process.status() != psutil.STATUS_ZOMBIE
                assert not alive, f"{name} of a process that runs cannot be read"
                continue
            assert_absent(data, f"{name} of a process")


def shown(value: object) -> bytes:
    return f"{value} {value!r}".encode()


def test_the_search_finds_what_is_there(tmp_path: Path) -> None:
    for number, secret in enumerate(form for each in (CANARY, ANSWER) for form in forms_of(each)):
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
        answer = await adapter.generate("tinydoc", CANARY, format=CHOICE, num_predict=200)
        assert ANSWER in answer.text
        for value in (answer, answer.statistics, adapter, adapter.pool, adapter.daemon):
            assert_absent(shown(value), type(value).__name__)
        # abort
        async with adapter.generate_stream("tinydoc", CANARY, format=CHOICE) as stream:
            event = await anext(stream)
            assert_absent(shown(event) + shown(stream), "an event")
            search_processes(pid)
        # errors, before and in the middle of a stream
        requests = {
            "unknown": {},
            "tinydoc": {"num_ctx": 64, "system": CANARY * 400},
        }
        for model, keywords in requests.items():
            with pytest.raises(AdapterError) as caught:
                await adapter.generate(model, CANARY, **keywords)
            errors.append(caught.value)
        with pytest.raises(AdapterError) as ill:
            _ = adapter.generate_stream("tinydoc", CANARY, format=CANARY)
        errors.append(ill.value)
        # a crash of the runner
        endless = {"type": "array", "items": {"enum": [ANSWER]}, "minItems": 4000}
        stream = adapter.generate_stream("tinydoc", CANARY, format=endless, num_predict=50_000)
        await anext(stream)
        os.kill(psutil.Process(pid).children()[0].pid, signal.SIGKILL)
        with pytest.raises(AdapterError) as crash:
            async for _ in stream:
                pass
        errors.append(crash.value)
        search_processes(pid)
    for error in errors:
        written = "".join(traceback.format_exception(error)) + error.hint + repr(vars(error))
        assert_absent(written.encode(), f"the traceback of {type(error).__name__}")
    assert_absent("\n".join(log.lines).encode(), "the log")
    search_files(machine, Path(os.environ["TMPDIR"]), Path("/dev/shm"))
