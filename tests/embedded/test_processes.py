"""Starting, stopping, dying: nothing is left behind, and the reader of a stream always learns the end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_adapter.system import runners
from ollama_adapter.system.clock import SystemClock
from tests.embedded import daemons
from tests.embedded.daemons import Daemon, gone, running

ENDLESS: dict[str, Any] = {
    "model": "tiny",
    "prompt": "x",
    "format": {"type": "string", "minLength": 10**6},
    "options": {"num_ctx": 512, "num_predict": 5120},
}
DIED = "an error was encountered while running the model: unexpected EOF"


@pytest.fixture
def own(store_root: Path) -> Iterator[Daemon]:
    """A daemon for this test alone."""
    with running(store_root) as daemon:
        yield daemon


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_leaves_with_zero_and_takes_its_runners_along(
    number: int, own: Daemon
) -> None:
    with own.streaming(ENDLESS) as stream:
        stream.line()
        family = own.runners()
        assert len(family) == 1
        assert own.stop(number) == 0
        assert b'"done":true' not in stream.rest()
    assert gone(family)


@pytest.mark.parametrize("argument", ["--help", "serve"])
def test_it_takes_no_arguments_and_says_what_it_is(argument: str) -> None:
    command = [sys.executable, "-m", "ollama_adapter.embedded", argument]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert "embedded daemon of Ollama Adapter takes no arguments" in done.stderr
    assert "OLLAMA_HOST" in done.stderr


def test_killed_it_takes_its_runners_along(own: Daemon) -> None:
    with own.streaming(ENDLESS) as stream:
        stream.line()
        family = own.runners()
        assert own.stop(signal.SIGKILL) == -signal.SIGKILL
    assert gone(family)


def test_killed_while_a_model_loads_it_takes_the_runner_along(own: Daemon) -> None:
    with own.streaming(ENDLESS):
        while not (family := [each for each in own.runners() if each.num_threads() > 1]):
            pass  # it has one until it has been told of its model
        own.stop(signal.SIGKILL)
    assert gone(family)


def test_a_runner_has_its_daemons_group_and_no_settings_in_argv(own: Daemon) -> None:
    own.generate("")
    (runner,) = own.runners()
    assert "gguf" not in " ".join(runner.cmdline())
    assert "OLLAMA_MODELS" not in runner.environ()
    assert os.getpgid(runner.pid) == os.getpgid(own.process.pid)


@pytest.mark.anyio
async def test_a_runner_bears_the_name_of_its_model_and_counts_from_then_on(
    own: Daemon, files: Path
) -> None:
    clock, weights = SystemClock(), hashlib.sha256((files / "tiny.gguf").read_bytes()).hexdigest()
    while sys.platform == "linux" and not own.runners():
        await asyncio.sleep(0.01)  # noqa: TID251 - one waits for the first model
    assert (await runners.look(own.process.pid, clock)).count == 0
    await asyncio.to_thread(own.generate, "")
    (runner,) = own.runners()
    assert runner.cmdline()[-1].rstrip() == f"sha256-{weights}"
    sample = runners.take(own.process.pid, weights, clock)
    assert sample is not None and sample.identified and list(sample.spent) == [runner.pid]


def test_a_runner_answers_nobody_without_the_key(own: Daemon) -> None:
    own.generate("")
    (runner,) = own.runners()
    (port,) = {each.laddr.port for each in runner.net_connections("tcp") if each.status == "LISTEN"}
    other = Daemon(own.process, port, own.models)
    answer = other.ask("/completion", {"prompt": "x"})
    assert answer.status == 401


def test_a_runner_killed_in_a_stream_ends_it_with_an_error_line(own: Daemon) -> None:
    with own.streaming(ENDLESS) as stream:
        stream.line()
        own.runners()[0].kill()
        lines = []
        while "error" not in (line := stream.line()):
            lines.append(line)
        assert line == {"error": DIED}
    assert own.resident() == []
    assert own.generate("a", options={"num_predict": 1}).status == 200


def test_a_runner_killed_in_a_whole_answer_is_a_500(own: Daemon) -> None:
    own.generate("")
    (runner,) = own.runners()
    answers: list[daemons.Answer] = []
    body = {**ENDLESS, "stream": False}
    asking = threading.Thread(target=lambda: answers.append(own.ask("/api/generate", body)))
    with own.streaming(ENDLESS) as stream:
        stream.line()
        asking.start()
        stream.sock.close()
    busy = runner.cpu_times().user
    while runner.cpu_times().user < busy + 0.02:
        pass
    runner.kill()
    asking.join()
    assert (answers[0].status, answers[0].error) == (500, DIED)


def test_an_idle_runner_that_dies_is_forgotten_at_once(own: Daemon) -> None:
    own.generate("")
    assert own.resident() == ["tiny:latest"]
    (runner,) = own.runners()
    runner.kill()
    assert gone([runner])
    while own.resident():
        pass
    assert own.generate("", keep_alive=-1).json["done_reason"] == "load"


@pytest.mark.parametrize("stream", [True, False])
def test_leaving_frees_the_slot(stream: bool, own: Daemon) -> None:
    own.generate("")
    for _ in range(3):
        with own.streaming({**ENDLESS, "stream": stream}) as under_way:
            if stream:
                under_way.line()
    assert own.generate("a", options={"num_predict": 1}).status == 200


def test_leaving_the_queue_is_noticed(own: Daemon) -> None:
    with own.streaming(ENDLESS) as first:
        first.line()
        waiting = [own.streaming(ENDLESS) for _ in range(3)]
        for each in waiting:
            with each:
                pass
        assert first.line()["done"] is False
    assert own.generate("a", options={"num_predict": 1}).status == 200


def test_leaving_during_the_load_gives_it_up(own: Daemon) -> None:
    with own.streaming(ENDLESS):
        while not (runners := own.runners()):
            pass
    assert gone(runners)
    assert own.resident() == []


def test_a_load_is_shared_and_lives_as_long_as_somebody_waits(own: Daemon) -> None:
    with own.streaming(ENDLESS) as one, own.streaming({**ENDLESS, "stream": True}) as two:
        while not own.runners():
            pass
        one.sock.shutdown(socket.SHUT_RDWR)
        assert two.line()["done"] is False
        assert len(own.runners()) == 1


def test_keep_alive_zero_unloads_after_the_answer(own: Daemon) -> None:
    own.generate("a", keep_alive=0, options={"num_predict": 1})
    assert own.resident() == []
    own.generate("", keep_alive="1h")
    assert own.resident() == ["tiny:latest"]
    assert own.generate("", keep_alive=0).json["done_reason"] == "unload"
    assert own.resident() == []


def test_a_model_outlives_its_last_use_by_its_keep_alive(own: Daemon) -> None:
    own.generate("", keep_alive="50ms")
    while own.resident():
        pass
    own.generate("", keep_alive=-1)
    (entry,) = own.ask("/api/ps").json["models"]
    assert entry["expires_at"] > "2100"


def test_an_option_of_the_loading_reloads(own: Daemon) -> None:
    own.generate("", options={"num_ctx": 256})
    (before,) = own.runners()
    assert own.ask("/api/ps").json["models"][0]["context_length"] == 256
    own.generate("a", options={"num_ctx": 256, "temperature": 0.1, "num_predict": 1})
    assert own.runners() == [before]
    own.generate("", options={"num_ctx": 128})
    assert own.runners() != [before]
    assert own.ask("/api/ps").json["models"][0]["context_length"] == 128
    own.generate("", options={"num_ctx": 10**12})
    assert own.ask("/api/ps").json["models"][0]["context_length"] == 512


def test_an_idle_model_makes_room(store_root: Path) -> None:
    with running(store_root, OLLAMA_MAX_LOADED_MODELS="1") as daemon:
        daemon.generate("")
        daemon.generate("", model="bare")
        assert daemon.resident() == ["bare:latest"]


def test_a_busy_model_is_waited_for(store_root: Path) -> None:
    with running(store_root, OLLAMA_MAX_LOADED_MODELS="1") as daemon:
        done: list[int] = []
        with daemon.streaming(ENDLESS) as stream:
            stream.line()
            other = threading.Thread(
                target=lambda: done.append(daemon.generate("", model="bare").status)
            )
            other.start()
            assert stream.line()["done"] is False
            assert daemon.resident() == ["tiny:latest"]
            assert done == []
        other.join()
        assert done == [200]
        assert daemon.resident() == ["bare:latest"]


def test_slots_side_by_side(store_root: Path) -> None:
    with (
        running(store_root, OLLAMA_NUM_PARALLEL="2") as daemon,
        daemon.streaming(ENDLESS) as one,
        daemon.streaming(ENDLESS) as two,
    ):
        for _ in range(5):
            assert one.line()["done"] is False
            assert two.line()["done"] is False
        assert len(daemon.runners()) == 1
        assert daemon.ask("/api/ps").json["models"][0]["context_length"] == 512


def test_the_queue_of_loads_has_an_end(store_root: Path) -> None:
    with running(store_root, OLLAMA_MAX_LOADED_MODELS="1", OLLAMA_MAX_QUEUE="1") as daemon:
        with daemon.streaming(ENDLESS) as stream:
            stream.line()
            with daemon.streaming({**ENDLESS, "model": "bare"}):
                while True:
                    answer = daemon.generate("", model="embed")
                    answer = daemon.generate("", model="tinydoc")
                    if answer.status == 503:
                        break
        assert answer.error == "server busy, please try again.  maximum pending requests exceeded"


def fail(host: str) -> tuple[int, str]:
    process = daemons.spawn(Path("nowhere"), OLLAMA_HOST=host)
    _, said = process.communicate(timeout=daemons.WATCHDOG_S)
    return process.returncode, said.decode()


def test_a_taken_port_is_one_line_and_exit_1(daemon: Daemon) -> None:
    code, said = fail(daemon.address)
    assert code == 1
    assert said == f"Error: listen tcp {daemon.address}: bind: address already in use\n"


@pytest.mark.parametrize("host", ["192.168.1.1:80", "example.org", "127.0.0.1:x"])
def test_an_address_elsewhere_is_refused(host: str) -> None:
    code, said = fail(host)
    assert code == 1
    assert said.startswith("Error: ")
    assert said.count("\n") == 1


def test_without_the_engine_it_says_what_to_install() -> None:
    hide = "import sys; sys.modules['xllamacpp'] = None; sys.argv = ['x'];"
    run = "import runpy; runpy.run_module('ollama_adapter.embedded', run_name='__main__')"
    done = subprocess.run(
        [sys.executable, "-c", hide + run],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "pip install 'ollama-adapter[embedded]'" in done.stderr


def test_an_idle_daemon_holds_no_engine(own: Daemon) -> None:
    mapped = {each.path for each in psutil.Process(own.process.pid).memory_maps()}
    assert not [path for path in mapped if "xllamacpp" in path]


def test_a_load_that_takes_too_long_is_given_up(store_root: Path) -> None:
    with running(store_root, OLLAMA_LOAD_TIMEOUT="1ms") as daemon:
        answer = daemon.generate("")
        assert answer.status == 500
        assert answer.error == "timed out waiting for llama-server to start - "
        assert gone(daemon.runners())
