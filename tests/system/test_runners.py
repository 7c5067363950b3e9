"""What is seen of a daemon's runners: real processes, and no more than may be seen."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.runners import Sampler, at_work, end, listener_pid, look, take
from ollama_adapter.testing import ManualClock

pytestmark = pytest.mark.anyio

DAEMON = """
import subprocess, sys
runners = [subprocess.Popen(["sh", "-c", sys.argv[1], "runner", each]) for each in sys.argv[2:]]
print("ready", flush=True)
sys.stdin.read()
for each in runners:
    each.kill()
    each.wait()
"""
CLOCK = SystemClock()
SPIN = "while :; do :; done"
REST = "read nothing"


@contextlib.contextmanager
def daemon(does: str, *weights: str) -> Iterator[psutil.Process]:
    """A process with a runner for each file of weights."""
    argv = [sys.executable, "-c", DAEMON, does, *weights]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None and process.stdout.readline()
        yield psutil.Process(process.pid)
    finally:
        process.communicate()


def test_the_runner_of_a_model_is_known_by_the_file_in_its_arguments() -> None:
    with daemon(REST, "/blobs/sha256-aa", "/blobs/sha256-bb") as process:
        both = take(process.pid, "", CLOCK)
        one = take(process.pid, "sha256-bb", CLOCK)
        none = take(process.pid, "sha256-cc", CLOCK)
    assert both is not None and one is not None and none is not None
    assert (len(both.spent), both.identified) == (2, False)
    assert both.taken_ns <= one.taken_ns <= none.taken_ns <= CLOCK.now_ns()
    assert (len(one.spent), one.identified) == (1, True)
    assert one.spent.keys() < both.spent.keys()
    assert (len(none.spent), none.identified) == (2, False), "it may be any of them"


def test_what_works_has_spent_more_each_time_and_is_ended_when_told() -> None:
    def spent() -> float:
        sample = take(process.pid, "sha256-aa", CLOCK)
        assert sample is not None
        return sum(sample.spent.values())

    with daemon(SPIN, "sha256-aa") as process:
        before = spent()
        while spent() == before:
            pass
        sample = take(process.pid, "sha256-aa", CLOCK)
        assert sample is not None
        end(sample)
        while spent():
            pass
        end(sample)  # once more: it has gone
        left = take(process.pid, "sha256-aa", CLOCK)
    assert left is not None and (left.spent, left.identified) == ({}, False)


async def test_which_models_work() -> None:
    by_name = f"case $1 in *busy) {SPIN};; *) {REST};; esac"
    with daemon(by_name, "sha256-busy", "sha256-idle") as process:
        names = ["sha256-busy", "sha256-idle", "sha256-gone"]
        expected = {"sha256-busy": True, "sha256-idle": False}
        while await at_work(process.pid, names, CLOCK) != expected:
            pass  # one that has just been started works, too
        assert await at_work(process.pid, ["sha256-gone"], CLOCK) == {}
    assert await at_work(None, names, CLOCK) == await at_work(process.pid, [], CLOCK) == {}


HIDDEN = """
import threading
threading.Thread(target=lambda: [0 for _ in iter(int, 1)], daemon=True).start()
print("ready", flush=True)
input()
"""


def test_a_thread_that_works_behind_one_that_sleeps_is_seen_to_want_the_cpu() -> None:
    argv = [sys.executable, "-c", HIDDEN]
    busy = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert busy.stdout is not None and busy.stdout.readline()
        with daemon(REST, "sha256-aa") as process:
            (mine,) = [each for each in psutil.Process().children() if each.pid == busy.pid]
            while mine.status() != psutil.STATUS_SLEEPING:  # its main thread waits for its input
                pass
            both = take(os.getpid(), "", CLOCK)
            resting = take(process.pid, "", CLOCK)
            while (
                resting is not None and resting.runnable
            ):  # it may not have come to its `read` yet
                resting = take(process.pid, "", CLOCK)
        assert both is not None and both.runnable
        assert resting is not None and not resting.runnable
    finally:
        busy.kill()
        busy.communicate()


def test_a_daemon_that_has_gone_has_no_runners_and_none_at_all_cannot_be_seen() -> None:
    with daemon(REST) as process:
        pass
    gone = take(process.pid, "", CLOCK)
    assert gone is not None and gone.spent == {}
    assert take(None, "", CLOCK) is None


async def test_those_who_ask_at_the_same_time_share_a_sample() -> None:
    clock = ManualClock()
    sampler = Sampler(clock)
    with daemon(REST, "sha256-aa") as process:
        first, same, other = await asyncio.gather(
            *(sampler.sample(process.pid, each) for each in ("sha256-aa", "sha256-aa", ""))
        )
        assert first is same is not other
        clock.advance(60_000_000)
        later = await sampler.sample(process.pid, "sha256-aa")
    assert first is not None and later is not None
    assert later.taken_ns == first.taken_ns + 60_000_000


async def test_nothing_is_said_of_a_daemon_without_a_pid() -> None:
    runners = await look(None, ManualClock())
    assert (runners.count, runners.working) == (None, None)


def test_who_listens_is_found_where_it_is_another_process_of_ours() -> None:
    port = find_free_port()
    serve = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", str(port)]
    server = subprocess.Popen(serve, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while (found := listener_pid(port)) is None and server.poll() is None:
            pass
        assert found == server.pid != os.getpid()
    finally:
        server.kill()
        server.wait()
    assert listener_pid(port) is None
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        own.listen()
        assert listener_pid(own.getsockname()[1]) is None, "our children are no runners"


WITHOUT_NAME = """
import threading
for _ in range({}):
    threading.Thread(target=threading.Event().wait).start()
print(flush=True)
threading.Event().wait()
"""


@pytest.mark.parametrize(("threads", "counts"), [(0, False), (1, True)])
def test_a_runner_that_can_take_no_name_counts_when_it_has_a_model(
    threads: int, counts: bool
) -> None:
    command = [sys.executable, "-c", WITHOUT_NAME.format(threads), " " * 9]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline()
            sample = take(os.getpid(), "", SystemClock())
        finally:
            process.kill()
    assert sample is not None and (process.pid in sample.spent) is counts
