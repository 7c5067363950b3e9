"""The command on the embedded daemon and the bundled model: it answers, and whatever ends it ends all."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from ollama_adapter.embedded.store import TINYDOC
from ollama_adapter.events import Statistics, TokenEvent

pytestmark = pytest.mark.usefixtures("machine")

WATCHDOG_S = 60.0
QUESTION = "What does os.path.join do?"
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}
"""A schema that keeps the model busy: it may not end before 4000 numbers."""


def command(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ollama_adapter", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )


def family_of(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return process.children(recursive=True)


def all_gone(processes: list[psutil.Process]) -> None:
    _, left = psutil.wait_procs(processes, timeout=WATCHDOG_S)
    running = [each for each in left if each.status() != psutil.STATUS_ZOMBIE]  # init is not ours
    assert not running, f"left behind: {running}"


def test_a_prompt_is_answered_by_the_bundled_model() -> None:
    done = command("run", QUESTION, "--num-predict", "20", "--stats")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() and done.stdout.endswith("\n")
    assert "knows nothing" in done.stderr and "kept" in done.stderr


def test_the_events_are_those_of_the_contract() -> None:
    done = command("run", "tinydoc", "-", "--num-predict", "20", "--json", stdin=QUESTION)
    *tokens, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert {field.name for field in dataclasses.fields(TokenEvent)} < set(tokens[0])
    assert {field.name for field in dataclasses.fields(Statistics)} < set(last)
    assert all(len(each["logprobs"]) == 5 and 0 < each["energy"] <= 1 for each in tokens)
    assert last["tokens"] == len(tokens) and last["mean_energy"] > 0
    assert (last["served_by"], last["finish"] in ("stop", "length")) == ("tinydoc", True)


def test_the_same_seed_gives_the_same_answer() -> None:
    once, again = (command("run", QUESTION, "--seed", "7", "--num-predict", "30") for _ in range(2))
    assert once.stdout == again.stdout


def test_a_prompt_longer_than_the_context_names_both_numbers() -> None:
    done = command("run", "tinydoc", "-", "--num-ctx", "256", stdin="word " * 3000)
    assert done.returncode == 1
    assert "longer than the context" in done.stderr and "256 fit" in done.stderr


def test_a_model_that_is_not_there() -> None:
    done = command("run", "nonexistent", "hi", "--json")
    last = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, last["type"], last["error"]) == (1, "error", "ModelNotFound")


def test_what_it_tells_of_itself() -> None:
    models = command("models")
    assert "tinydoc:latest" in models.stdout and "knows nothing" in models.stderr
    status = json.loads(command("status", "--json").stdout)
    assert (status["ready"], status["plan"]) == (False, "start the embedded daemon")
    started = json.loads(command("status", "--start", "--json").stdout)
    assert (started["ready"], started["origin"]) == (True, "embedded")
    assert not psutil.pid_exists(started["pid"])
    assert command("embed", "tinydoc", "text").returncode == 1


def test_a_file_is_imported_listed_asked_and_removed(machine: Path) -> None:
    imported = command("import", str(TINYDOC), "mine:1", "--json")
    assert imported.returncode == 0, imported.stderr
    store = Path(json.loads(imported.stdout)["store"])
    assert store.is_relative_to(machine)
    names = [json.loads(line)["name"] for line in command("models", "--json").stdout.splitlines()]
    assert sorted(names) == ["mine:1", "tinydoc:latest"]
    assert command("run", "mine:1", QUESTION, "--num-predict", "5").returncode == 0
    assert command("rm", "mine:1").stdout == "removed mine:1\n"
    assert [each for each in store.rglob("*") if each.is_file()] == []


@pytest.fixture
def schema(tmp_path: Path) -> str:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(ENDLESS))
    return str(path)


async def start(schema: str) -> tuple[asyncio.subprocess.Process, list[psutil.Process]]:
    """The command in the middle of an answer, and what it started."""
    arguments = ("run", QUESTION, "--format", schema, "--num-predict", "100000", "--json")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "ollama_adapter", *arguments),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    async with asyncio.timeout(WATCHDOG_S):
        await process.stdout.readline()
    family = family_of(process.pid)
    assert len(family) >= 3  # keeper, daemon, runner
    return process, family


@pytest.mark.anyio
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
async def test_a_signal_ends_everything(schema: str, number: signal.Signals) -> None:
    process, family = await start(schema)
    process.send_signal(number)
    async with asyncio.timeout(WATCHDOG_S):
        out, err = await process.communicate()
    assert process.returncode == 128 + number
    last = json.loads(out.splitlines()[-1])
    assert (last["type"], last["finish"], err) == ("statistics", "aborted", b"")
    all_gone(family)


@pytest.mark.anyio
async def test_even_sigkill_ends_everything(schema: str) -> None:
    process, family = await start(schema)
    os.kill(process.pid, signal.SIGKILL)
    async with asyncio.timeout(WATCHDOG_S):
        await process.communicate()
    all_gone(family)


@pytest.mark.anyio
async def test_a_closed_pipe_ends_everything(schema: str) -> None:
    shell = (
        f'"{sys.executable}" -m ollama_adapter run "{QUESTION}" --format "{schema}"'
        " --num-predict 100000 --json | head -n 1"
    )
    process = await asyncio.create_subprocess_exec(
        "/bin/sh", "-c", shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    async with asyncio.timeout(WATCHDOG_S):
        out, err = await process.communicate()
    assert json.loads(out)["type"] == "token" and err == b""
