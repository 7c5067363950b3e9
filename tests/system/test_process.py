"""No daemon outlives its application: real families of processes, ended in every way there is.

A child tells its numbers over a socket; its end is a file descriptor that becomes readable.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
from anyio.lowlevel import checkpoint

import ollama_adapter
from ollama_adapter.errors import AdapterError, DaemonExited, DaemonNotFound
from ollama_adapter.system import process
from ollama_adapter.system.process import Child, Keeper, spawn
from ollama_adapter.system.running import Exit
from ollama_adapter.system.scope import TaskScope

pytestmark = pytest.mark.anyio
WATCHDOG_S = 60.0
RING_BYTES = 64 << 10
SOURCE = str(Path(ollama_adapter.__file__).parents[1])

TELL = """
import json, os, signal, socket, subprocess, sys
def tell(**what):
    with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
        connection.sendall(json.dumps(what).encode())
def wait():
    while True:
        signal.pause()
"""
SLEEPER = TELL + "tell(pid=os.getpid()); wait()"
STUBBORN = TELL + "signal.signal(signal.SIGTERM, signal.SIG_IGN); tell(pid=os.getpid()); wait()"
POLITE = (
    TELL
    + "signal.signal(signal.SIGTERM, lambda *_: (print('good bye', flush=True), os._exit(7)));"
    + "tell(pid=os.getpid()); wait()"
)
FAMILY = (
    TELL
    + """
stubborn = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
grandchild = subprocess.Popen([sys.executable, "-c", stubborn], stdout=subprocess.PIPE)
grandchild.stdout.readline()
tell(pid=os.getpid(), grandchild=grandchild.pid, keeper=os.getppid())
wait()
"""
)


class Mailbox:
    """What the children have to say."""

    def __init__(self) -> None:
        self.port = 0
        self._letters: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._letters.put_nowait(json.loads(await reader.read()))
        writer.close()

    async def next(self) -> dict[str, Any]:
        return await self._letters.get()


@pytest.fixture
async def mailbox() -> AsyncIterator[Mailbox]:
    box = Mailbox()
    server = await asyncio.start_server(box.receive, "127.0.0.1", 0)
    box.port = server.sockets[0].getsockname()[1]
    async with server:
        yield box


@pytest.fixture
async def scope() -> AsyncIterator[TaskScope]:
    scope = TaskScope()
    with anyio.fail_after(WATCHDOG_S):
        yield scope
        await scope.aclose()


def program(code: str, box: Mailbox) -> list[str]:
    return [sys.executable, "-c", code, str(box.port)]


async def start(code: str, box: Mailbox, scope: TaskScope) -> tuple[Child, dict[str, Any]]:
    """A child that runs `code`, once it has told its numbers."""
    child = await spawn(program(code, box), {}, "/", scope)
    return child, await box.next()


@asynccontextmanager
async def all_ending(pids: Iterable[int]) -> AsyncIterator[None]:
    """What happens inside ends these processes: wait until it has."""
    ends = [os.pidfd_open(each) for each in pids]
    try:
        yield
        for each in ends:
            await anyio.wait_readable(each)
    finally:
        for each in ends:
            os.close(each)


def family_of(child: Child, told: dict[str, Any]) -> list[int]:
    assert told["pid"] == child.pid
    assert told["keeper"] == child.group
    return [child.pid, child.group, told["grandchild"]]


# Stopping


async def test_stopping_ends_the_whole_family(mailbox: Mailbox, scope: TaskScope) -> None:
    child, told = await start(FAMILY, mailbox, scope)
    family = family_of(child, told)
    assert {os.getpgid(each) for each in family} == {child.group}
    assert os.getpgid(0) != child.group
    async with all_ending(family):
        assert await child.stop(WATCHDOG_S) == Exit(-signal.SIGTERM, "")
    assert child.exited.result() == Exit(-signal.SIGTERM, "")


async def test_a_polite_daemon_ends_by_itself_and_its_last_words_are_kept(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    child, _ = await start(POLITE, mailbox, scope)
    assert await child.stop(WATCHDOG_S) == Exit(7, "good bye\n")


async def test_who_ignores_the_request_is_killed_after_the_grace(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    child, told = await start(STUBBORN, mailbox, scope)
    async with all_ending([told["pid"], child.group]):
        assert await child.stop(0.05) == Exit(-signal.SIGKILL, "")


async def test_stopping_twice_and_from_two_sides_gives_the_same(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    child, _ = await start(POLITE, mailbox, scope)
    async with asyncio.TaskGroup() as group:
        stops = [group.create_task(child.stop(WATCHDOG_S)) for _ in range(2)]
    assert {each.result().returncode for each in stops} == {7}
    assert await child.stop(0.05) == stops[0].result()
    child.kill()


async def test_of_two_stops_the_shorter_grace_holds(mailbox: Mailbox, scope: TaskScope) -> None:
    child, _ = await start(STUBBORN, mailbox, scope)
    async with asyncio.TaskGroup() as group:
        stops = [group.create_task(child.stop(each)) for each in (0.05, 10 * WATCHDOG_S)]
    assert [each.result() for each in stops] == [Exit(-signal.SIGKILL, "")] * 2


async def test_a_stop_that_is_cancelled_has_killed(mailbox: Mailbox, scope: TaskScope) -> None:
    child, told = await start(FAMILY, mailbox, scope)
    os.kill(child.pid, signal.SIGSTOP)  # so that it cannot end in time
    async with all_ending(family_of(child, told)):
        stop = asyncio.create_task(child.stop(WATCHDOG_S))
        await checkpoint()
        stop.cancel()
        await asyncio.wait([stop])
        assert stop.cancelled()


async def test_a_keeper_that_hangs_does_not_hold_up_the_stop(
    mailbox: Mailbox, scope: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "KILL_WAIT_S", 0.05)
    child, told = await start(FAMILY, mailbox, scope)
    async with all_ending(family_of(child, told)):
        os.kill(child.group, signal.SIGSTOP)
        assert await child.stop(0.05) == Exit(None)
    assert (await child.exited).returncode is None


async def test_killing_ends_the_whole_family(mailbox: Mailbox, scope: TaskScope) -> None:
    child, told = await start(FAMILY, mailbox, scope)
    async with all_ending(family_of(child, told)):
        child.kill()
        child.kill()
    assert (await child.exited).returncode is None
    assert repr(child) == f"<Child pid {child.pid} ended>"


async def test_closing_the_scope_ends_the_whole_family(mailbox: Mailbox) -> None:
    with anyio.fail_after(WATCHDOG_S):
        scope = TaskScope()
        child, told = await start(FAMILY, mailbox, scope)
        async with all_ending(family_of(child, told)):
            await scope.aclose()
        assert child.exited.done()


async def test_a_scope_that_closes_before_the_watch_began_ends_the_daemon(mailbox: Mailbox) -> None:
    with anyio.fail_after(WATCHDOG_S):
        scope = TaskScope()
        child = await spawn(program(SLEEPER, mailbox), {}, "/", scope)
        async with all_ending([child.pid, child.group]):
            await scope.aclose()
        assert child.exited.result() == Exit(None)


# Ending by itself


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import sys; print('out'); sys.exit(3)", Exit(3, "out\n")),
        ("import sys; print('err', file=sys.stderr); sys.exit(0)", Exit(0, "err\n")),
        ("import os; os.kill(os.getpid(), 9)", Exit(-9, "")),
        ("import os; os.write(1, b'\\xff\\xc3'); os._exit(1)", Exit(1, "��")),
    ],
)
async def test_how_a_daemon_ended_and_what_it_said(
    code: str, expected: Exit, mailbox: Mailbox, scope: TaskScope
) -> None:
    child = await spawn(program(code, mailbox), {}, "/", scope)
    assert await child.exited == expected
    assert "out" not in repr(child.exited.result())
    assert await child.stop(WATCHDOG_S) == expected


async def test_what_a_daemon_leaves_behind_goes_with_it(mailbox: Mailbox, scope: TaskScope) -> None:
    child, told = await start(FAMILY, mailbox, scope)
    async with all_ending(family_of(child, told)):
        os.kill(child.pid, signal.SIGKILL)
    assert (await child.exited).returncode == -signal.SIGKILL


async def test_a_daemon_that_talks_without_end_is_heard_out_and_its_end_remembered(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    """Ollama hangs for ever once nobody reads what it logs."""
    code = TELL + (
        "for n in range(300): os.write(1, b'o' * 65536); os.write(2, b'e' * 65536)\n"
        "os.write(2, b'the end'); tell(done=True); wait()"
    )
    child, told = await start(code, mailbox, scope)
    assert told == {"done": True}
    tail = (await child.stop(WATCHDOG_S)).tail
    assert tail == "e" * (RING_BYTES - len("the end")) + "the end"


async def test_an_order_that_comes_too_late_does_not_cost_the_daemons_last_words(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    """Writing to a keeper that has gone is an error, which would hide what it had said before."""
    child, _ = await start(TELL + "print('words', flush=True); tell(); wait()", mailbox, scope)
    keeper = os.pidfd_open(child.group)
    os.kill(child.pid, signal.SIGKILL)
    select.select([keeper], [], [], 0.3)  # a busy application: its loop is held for so long
    os.close(keeper)
    assert await child.stop(WATCHDOG_S) == Exit(-signal.SIGKILL, "words\n")


async def test_any_bytes_at_the_end_come_through(mailbox: Mailbox, scope: TaskScope) -> None:
    code = "import os; [os.write(1, bytes(range(256)) * 64) for _ in range(8)]"
    child = await spawn(program(code, mailbox), {}, "/", scope)
    exit_ = await child.exited
    assert exit_.returncode == 0
    assert len(exit_.tail) >= RING_BYTES // 2


async def test_a_daemon_may_close_its_output(mailbox: Mailbox, scope: TaskScope) -> None:
    child, _ = await start("import os; os.close(1); os.close(2)\n" + POLITE, mailbox, scope)
    assert not child.exited.done()
    assert (await child.stop(WATCHDOG_S)).returncode is not None


# What cannot be started


async def test_what_cannot_be_started_is_not_found(tmp_path: Path, scope: TaskScope) -> None:
    before = set(psutil.Process().children())
    plain = tmp_path / "plain"
    plain.write_text("no program")
    for argv, cwd in (
        (["/no/such/program"], "/"),
        (["no-such-program"], "/"),
        ([str(plain)], "/"),
        ([str(tmp_path)], "/"),
        ([sys.executable, "-c", ""], "/no/such/directory"),
        (["nul\0byte"], "/"),
    ):
        with pytest.raises(DaemonNotFound, match="cannot be started"):
            await spawn(argv, {}, cwd, scope)
    assert set(psutil.Process().children()) <= before


async def test_without_a_keeper_nothing_can_be_started(
    scope: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(DaemonNotFound, match="no process can be started"):
        await spawn(["/bin/true"], {}, "/", scope)


ELSEWHERE = """
import asyncio, socket, sys
linux, pair = sys.platform, socket.socketpair
def socketpair(family=socket.AF_UNIX, kind=socket.SOCK_STREAM, number=0):
    if kind == socket.SOCK_SEQPACKET:
        raise OSError(43, "Protocol not supported")
    return pair(family, kind, number)
socket.socketpair = socketpair
sys.platform = "darwin"
from ollama_adapter.system import process
sys.platform = linux
from ollama_adapter.system.scope import TaskScope
async def main():
    child = await process.spawn([sys.executable, "-c", ""], {}, "/", TaskScope())
    print((await child.exited).returncode)
asyncio.run(main())
"""


def test_a_system_without_sequenced_packets_can_spawn() -> None:
    """As macOS, where there is no jail that needs them."""
    command = [sys.executable, "-c", ELSEWHERE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("0\n", "")


async def test_a_closed_scope_keeps_no_daemon(mailbox: Mailbox) -> None:
    before = set(psutil.Process().children())
    scope = TaskScope()
    await scope.aclose()
    with pytest.raises(AdapterError, match="closed"):
        await spawn(program(SLEEPER, mailbox), {}, "/", scope)
    assert set(psutil.Process().children()) <= before


async def test_cancelling_a_start_at_any_turn_leaves_no_process(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    before = set(psutil.Process().children())
    for turns in range(8):
        starting = asyncio.create_task(spawn(program(SLEEPER, mailbox), {}, "/", scope))
        for _ in range(turns):
            await checkpoint()
        assert not starting.done(), "a keeper needs longer than that"
        starting.cancel()
        await asyncio.wait([starting])
        assert starting.cancelled(), f"after {turns} turns"
        assert set(psutil.Process().children()) <= before, f"after {turns} turns"


# The environment


async def test_the_daemon_gets_the_environment_it_is_given_and_no_other(
    mailbox: Mailbox, scope: TaskScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("OLLAMA_API_KEY", "HTTP_PROXY", "LLAMA_ARG_TOOLS", "PYTHONSTARTUP"):
        monkeypatch.setenv(name, "ours")
    given = {
        "OLLAMA_HOST": "127.0.0.1:1",
        "EMPTY": "",
        "ODD": 'a=b "c" \u20ac\n',
        "LANG": "C.UTF-8",
    }
    code = TELL + (
        "env = open('/proc/self/environ', 'rb').read().decode().split('\\0')[:-1]\n"
        "fds = sorted(os.listdir('/proc/self/fd'))\n"
        "status = open('/proc/self/status').read()\n"
        "tell(env=env, cwd=os.getcwd(), fds=fds, status=status, stdin=os.readlink('/proc/self/fd/0'))"
    )
    child = await spawn(program(code, mailbox), given, "/usr", scope)
    told = await mailbox.next()
    await child.exited
    assert dict(each.split("=", 1) for each in told["env"]) == given
    assert told["cwd"] == "/usr"
    assert told["stdin"] == "/dev/null"
    assert len(told["fds"]) == 4, "a descriptor of ours was inherited"  # 0, 1, 2, and the listing's
    masks = dict(line.split(":\t") for line in told["status"].splitlines() if "\t" in line)
    assert int(masks["SigBlk"], 16) == 0


async def test_signals_that_the_application_blocks_reach_the_daemon(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    blocked = {signal.SIGCHLD, signal.SIGTERM, signal.SIGHUP}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, blocked)
    try:
        child, _ = await start(POLITE, mailbox, scope)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert await child.stop(10.0) == Exit(7, "good bye\n")


# Kill -9, of the keeper and of the application


async def test_when_the_keeper_is_killed_the_family_goes(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    child, told = await start(FAMILY, mailbox, scope)
    async with all_ending(family_of(child, told)):
        os.kill(child.group, signal.SIGKILL)
    assert await child.exited == Exit(None)


async def test_a_keeper_that_is_killed_before_it_has_spawned_is_no_fault_of_the_jail(
    mailbox: Mailbox, scope: TaskScope
) -> None:
    with Keeper() as keeper:
        os.kill(keeper.process.pid, signal.SIGKILL)
        with pytest.raises(DaemonExited, match="its keeper died"):
            await spawn(program(SLEEPER, mailbox), {}, "/", scope, keeper=keeper)


APPLICATION = """
import asyncio, os, sys
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope

async def main():
    await spawn([sys.executable, "-c", sys.argv[2], sys.argv[1]], {}, "/", TaskScope())
    if sys.argv[3] == "fork" and os.fork() == 0:
        import signal
        signal.pause()  # a worker, which holds the keeper's socket open
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["plain", "fork"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_when_the_application_is_killed_all_goes(
    way: str, end: signal.Signals, mailbox: Mailbox
) -> None:
    environment = os.environ | {"PYTHONPATH": SOURCE}
    argv = [sys.executable, "-c", APPLICATION, str(mailbox.port), FAMILY, way]
    with anyio.fail_after(WATCHDOG_S), subprocess.Popen(argv, env=environment) as application:
        try:
            told = await mailbox.next()
            if way == "fork":
                while not (workers := _workers(application.pid, told["keeper"])):
                    await checkpoint()
            async with all_ending([told["pid"], told["grandchild"], told["keeper"]]):
                os.kill(application.pid, end)
        finally:
            application.kill()
            if way == "fork":
                for each in workers:
                    each.kill()


def _workers(application: int, keeper: int) -> list[psutil.Process]:
    children = psutil.Process(application).children()
    return [each for each in children if each.pid != keeper]
