"""A daemon in a jail: it starts, is reached, reports its level, and leaves nobody behind."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import psutil
import pytest
from anyio.lowlevel import checkpoint

import ollama_adapter
from ollama_adapter.errors import ConnectFailed, DaemonExited, NotSandboxed
from ollama_adapter.system.jail import JAIL_UID
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope
from tests.system.jail import cells
from tests.system.jail.cells import SERVER, answer_of, policy, start
from tests.system.jail.grounds import ROOT

pytestmark = pytest.mark.anyio
LEVELS = cells.available()
GONE_S = 10.0  # a watchdog; what is promised is 0.5, and a busy machine may take longer to look
SOURCE = str(Path(ollama_adapter.__file__).parents[1])


@pytest.fixture
def own() -> Iterator[Path]:
    """A home for the daemon, where a user without rights can reach it."""
    with tempfile.TemporaryDirectory(prefix="cell-") as name:
        base = Path(name)
        base.chmod(0o755)
        home = base / "home"
        home.mkdir(mode=0o700)
        yield home


@pytest.fixture
async def owner() -> AsyncIterator[TaskScope]:
    async with cells.scope() as owner:
        yield owner


def family_of(group: int) -> list[psutil.Process]:
    leader = psutil.Process(group)
    return [leader, *leader.children(recursive=True)]


async def gone(family: list[psutil.Process]) -> float:
    """Seconds until none of them runs."""
    start = time.monotonic()
    while any(runs(each) for each in family):
        await checkpoint()
    return time.monotonic() - start


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.mark.parametrize("level", LEVELS)
async def test_a_jailed_daemon_is_reached_and_has_no_rights(
    level: Level, own: Path, owner: TaskScope
) -> None:
    child = await start(SERVER, policy(level, own), owner)
    assert child.level is level
    for _ in range(3):
        told = await answer_of(child)
    assert told["environ"].keys() <= {"LANG", "LC_CTYPE"}
    assert told["cwd"] == "/"
    assert (told["pid"] == child.pid) is (level is not Level.NAMESPACES)
    if ROOT:
        assert told["uid"] != 0
    status = Path(f"/proc/{child.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == int(fields["CapAmb"], 16) == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    assert int(fields["SigIgn"], 16) & 1 << (signal.SIGTERM - 1) == 0
    exit_ = await child.stop(10.0)
    assert exit_.returncode == -signal.SIGTERM, exit_.tail


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("code", "returncode"),
    [
        ("print('said'); raise SystemExit(3)", 3),
        ("import os; print('said', flush=True); os.abort()", -6),
    ],
)
async def test_how_it_ended_is_told(
    level: Level, code: str, returncode: int, own: Path, owner: TaskScope
) -> None:
    child = await start(code, policy(level, own), owner)
    exit_ = await child.exited
    assert exit_.returncode == returncode, exit_.tail
    assert "said" in exit_.tail
    with pytest.raises(ConnectFailed):
        await child.dial()


@pytest.mark.parametrize("level", LEVELS)
async def test_nobody_listens_yet(level: Level, own: Path, owner: TaskScope) -> None:
    child = await start("import signal; signal.pause()", policy(level, own), owner)
    for _ in range(3):
        with pytest.raises(ConnectFailed):
            await child.dial()
    await child.stop(10.0)


@pytest.mark.parametrize("level", LEVELS)
async def test_many_connections_at_once_each_get_their_own(
    level: Level, own: Path, owner: TaskScope
) -> None:
    child = await start(SERVER, policy(level, own), owner)
    await answer_of(child)
    async with anyio.create_task_group() as group:
        for _ in range(40):
            group.start_soon(answer_of, child)
    before = len(os.listdir("/proc/self/fd"))
    with anyio.move_on_after(0):
        (await child.dial()).close()  # a port is there before there is anything to cancel
    await answer_of(child)
    assert len(os.listdir("/proc/self/fd")) == before
    await child.stop(10.0)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("change", ["read", "write", "execute"])
async def test_a_policy_that_cannot_be_carried_out_starts_nothing(
    level: Level, change: str, own: Path, owner: TaskScope
) -> None:
    before = set(psutil.Process().children())
    given = policy(level, own, **{change: ("/no/such/path",)})
    with pytest.raises(NotSandboxed, match="No such file"):
        await start(SERVER, given, owner)
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("level", LEVELS)
async def test_a_program_that_is_not_in_the_policy_is_not_run(
    level: Level, own: Path, owner: TaskScope
) -> None:
    with pytest.raises(NotSandboxed, match="cannot be started"):
        await spawn(["/bin/sh", "-c", "true"], {}, "/", owner, policy(level, own))
    with pytest.raises(NotSandboxed, match="absolute"):
        await spawn(["sh"], {}, "/", owner, policy(level, own))


@pytest.mark.parametrize("level", LEVELS)
async def test_root_needs_a_user_to_become_and_an_ordinary_user_stays_who_it_is(
    level: Level, own: Path, owner: TaskScope
) -> None:
    given = policy(level, own, uid=0)
    if ROOT:
        with pytest.raises(NotSandboxed, match="needs a user to become"):
            await start(SERVER, given, owner)
        return
    child = await start(SERVER, given, owner)
    assert (await answer_of(child))["uid"] == os.getuid()
    await child.stop(10.0)


@pytest.mark.parametrize("level", LEVELS)
async def test_what_is_given_to_the_daemons_user_is_its_own_directory_and_nothing_beyond(
    level: Level, own: Path, owner: TaskScope
) -> None:
    outside = own.parent / "outside"
    outside.write_text("ours")
    (own / "deep").mkdir()
    (own / "deep" / "file").write_text("x")
    (own / "link").symlink_to(outside)
    os.link(outside, own / "hard")
    child = await start("import signal; signal.pause()", policy(level, own), owner)
    await child.stop(10.0)
    for path in (own, own / "deep", own / "deep" / "file"):
        assert path.stat().st_uid == (JAIL_UID if ROOT else os.getuid())
    assert outside.stat().st_uid == os.getuid()


@pytest.mark.parametrize("level", LEVELS)
async def test_what_it_may_not_read_by_its_rights_is_told_before_it_starts(
    level: Level, own: Path, owner: TaskScope
) -> None:
    closed = own.parent / "closed"
    closed.mkdir(mode=0)
    given = policy(level, own)
    with pytest.raises(NotSandboxed, match=r"Permission denied.*closed"):
        await start(SERVER, replace(given, read=(*given.read, str(closed))), owner)


# Kill -9, of each


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("whom", ["keeper", "daemon", "outer", "first", "runner"])
async def test_whoever_is_killed_nobody_is_left(
    level: Level, whom: str, own: Path, owner: TaskScope
) -> None:
    child = await start(SERVER, policy(level, own), owner)
    await answer_of(child)
    family = family_of(child.group)
    assert len(family) == (5 if level is Level.NAMESPACES else 3)
    index = {"keeper": 0, "outer": 1, "first": 2, "daemon": -2, "runner": -1}[whom]
    family[min(index, len(family) - 2) if whom in ("outer", "first") else index].kill()
    if whom == "runner":
        await child.stop(10.0)
    assert await gone(family) < GONE_S
    await child.exited


@pytest.mark.parametrize("level", LEVELS)
async def test_whoever_is_killed_at_any_moment_of_the_start_nobody_is_left(
    level: Level, own: Path, owner: TaskScope, scaled: Callable[[int], int]
) -> None:
    chance = random.Random(level)
    before = set(psutil.Process().children())
    for _ in range(scaled(500)):
        starting = asyncio.create_task(start(SERVER, policy(level, own), owner))
        await checkpoint()
        (keeper,) = set(psutil.Process().children()) - before
        moment = time.monotonic() + chance.random() * 0.1
        while time.monotonic() < moment:
            await checkpoint()
        family = family_of(keeper.pid)
        chance.choice(family).kill()
        try:
            child = await starting
        except (NotSandboxed, DaemonExited):  # the latter where it was the keeper
            pass
        else:
            child.kill()  # it may have been a runner, without which the daemon lives
            await child.exited
        assert await gone(family) < GONE_S
        late = in_group(keeper.pid)  # just forked, and just killed
        assert await gone(late) < GONE_S


def in_group(group: int) -> list[psutil.Process]:
    found = []
    for each in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(each.pid) == group:
                found.append(each)
    return found


APPLICATION = """
import asyncio, json, sys
from ollama_adapter.system.jail.policy import Policy
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope

async def main():
    order = json.load(sys.stdin)
    child = await spawn(order["argv"], {}, "/", TaskScope(), Policy.from_json(order["policy"]))
    print(child.group, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("level", "keeper_too"),
    [(each, False) for each in LEVELS]
    + [(Level.NAMESPACES, True)]
    * (Level.NAMESPACES in LEVELS),  # elsewhere a runner is on its own then
)
async def test_when_the_application_is_killed_nobody_is_left(
    level: Level, keeper_too: bool, own: Path
) -> None:
    given = policy(level, own)
    argv = [cells.PYTHON, "-I", "-S", "-c", SERVER, str(given.ports[0])]
    order = json.dumps({"argv": argv, "policy": given.to_json()})
    command = [sys.executable, "-c", APPLICATION]
    environment = os.environ | {"PYTHONPATH": SOURCE}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, env=environment, text=True, **pipes) as application:  # type: ignore[call-overload]
        application.stdin.write(order)
        application.stdin.close()
        group = int(application.stdout.readline())
        with anyio.fail_after(cells.WATCHDOG_S):
            while len(family := family_of(group)) < (5 if level is Level.NAMESPACES else 3):
                await checkpoint()
            if keeper_too:
                os.kill(group, signal.SIGKILL)
            application.kill()
            assert await gone(family) < GONE_S
