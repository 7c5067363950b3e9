"""The process that speaks with a registry has one way out, and one directory; with a control for each."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ollama_adapter.config import Sandbox
from ollama_adapter.errors import NotSandboxed
from ollama_adapter.puller.errand import SCRIPT
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.levels import Facts, decide
from ollama_adapter.system.jail.paths import puller_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import spawn
from ollama_adapter.system.scope import TaskScope
from tests.embedded.ggufs import llama
from tests.puller.conftest import Make
from tests.registry.serving import AUTHORITY, Registry
from tests.system.jail import cells
from tests.system.jail.grounds import USERS, facts_of, run_staged

pytestmark = pytest.mark.anyio
ATTACKS = Path(__file__).with_name("attacks.py")
HERE = Path(__file__).parent
WISHES = {Level.NAMESPACES: "namespaces", Level.PARTIAL: "no socket of its own"}
LEVELS = [
    each
    for each in (Level.NAMESPACES, Level.PARTIAL)
    if each in cells.available() and (each is Level.NAMESPACES or sys.executable == cells.PYTHON)
]
"""Those that can be had here; test_it_is_the_same_for_others sets the stage for the others."""
STAGES: dict[str, dict[str, bool]] = {
    "as it is": {},
    "namespaces switched off": {"refuse": True},
}
CASES = [(user, stage) for user in USERS for stage in STAGES]


@pytest.fixture
async def owner() -> AsyncIterator[TaskScope]:
    async with cells.scope() as owner:
        yield owner


@pytest.fixture
def targets(store: Path) -> Iterator[dict[str, Any]]:
    """What there is to attack, beside the store."""
    with contextlib.ExitStack() as stack:
        base = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="near-")))
        base.chmod(0o777)
        neighbour = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        datagrams = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        datagrams.bind(("127.0.0.1", 0))
        unix = stack.enter_context(socket.socket(socket.AF_UNIX))
        unix.bind(str(base / "unix"))
        unix.listen()
        (base / "unix").chmod(0o666)
        blob = store / "blobs" / "sha256-x"
        blob.parent.mkdir(parents=True)
        blob.write_bytes(b"x")
        blob.chmod(0o666)
        yield {
            "neighbour": neighbour.getsockname()[1],
            "datagrams": datagrams.getsockname()[1],
            "unix": str(base / "unix"),
            "outside": "203.0.113.1",  # of documentation: nobody has it
            "home": str(base),
            "blob": str(blob),
            "elsewhere": str(base / "written"),
            "application": os.getpid(),
        }


async def attack(
    level: Level, store: Path, targets: dict[str, Any], owner: TaskScope
) -> dict[str, str]:
    """How each attempt ended, at this level."""
    staging = store / "staging"
    staging.mkdir(mode=0o700)
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    stream, far = socket.socketpair()
    with ours, stream, far:
        with its:
            argv = [sys.executable, "-I", "-S", "-B", str(ATTACKS), str(its.fileno())]
            argv += [json.dumps(targets), AUTHORITY]
            policy = puller_policy(level, str(ATTACKS), staging=str(staging), cafile=AUTHORITY)
            given = [its.fileno()]
            child = await spawn(argv, {}, str(staging), owner, policy, given=given)
        socket.send_fds(ours, [b"a stream"], [stream.fileno()])
        with anyio.fail_after(cells.WATCHDOG_S):
            await anyio.wait_readable(ours)
        said = ours.recv(1 << 16)
    assert said, (await child.stop(1.0)).tail
    ended = await child.stop(10.0)
    assert ended.returncode in (0, -15), ended.tail
    assert (staging / "staged-too").read_text() == "x"
    ends: dict[str, str] = json.loads(said)
    return ends


async def test_without_a_jail_every_attack_succeeds(
    store: Path, targets: dict[str, Any], owner: TaskScope
) -> None:
    """Else the others would show nothing. Out of this machine there may be no way at all."""
    ends = await attack(Level.NONE, store, targets, owner)
    ends.pop("dial_out")
    for each in ("look_into_the_application", "trace_the_application"):
        if ends[each] == "Operation not permitted":  # a machine may forbid it to everybody
            ends[each] = ""
    assert {name: end for name, end in ends.items() if end} == {}


@pytest.mark.parametrize("level", LEVELS)
async def test_in_its_jail_none_does(
    level: Level, store: Path, targets: dict[str, Any], owner: TaskScope
) -> None:
    ends = await attack(level, store, targets, owner)
    assert [name for name, end in ends.items() if not end] == []
    assert ends["dial_this_machine"] == ends["make_a_pair"] == "Permission denied"


async def test_the_level_is_reported(registry: Registry, make: Make) -> None:
    expected = WISHES[decide(levels.probe(), sockets=False).level]
    receipt = await make().pull(registry.add("small", llama()))
    assert receipt.sandbox == expected
    plain = await make(sandbox=Sandbox.NONE).pull(registry.add("plain", llama()))
    assert plain.sandbox == "none"


def test_where_nothing_has_a_socket_nothing_needs_a_guard() -> None:
    good = Facts(landlock=7)
    assert decide(good, sockets=False).level is Level.NAMESPACES
    refused = Facts(landlock=7, namespaces="refused", notify="refused")
    assert decide(refused, sockets=False).level is Level.PARTIAL
    for facts in (Facts(landlock=0), Facts(landlock=7, seccomp="refused"), Facts(elsewhere="far")):
        with pytest.raises(NotSandboxed):
            decide(facts, sockets=False)


def test_the_policy_has_python_certificates_and_one_directory(tmp_path: Path) -> None:
    policy = puller_policy(
        Level.NAMESPACES, str(SCRIPT), staging=str(tmp_path), cafile="/etc/ssl/certs/x.crt"
    )
    assert policy.write == policy.own == (str(tmp_path),)
    assert not policy.sockets
    assert policy.ports == ()
    forbidden = {"/", "/etc", "/proc", "/home", "/root", "/tmp", "/usr", "/usr/bin", "/sys"}
    assert not forbidden & set(policy.read)
    assert str(SCRIPT) in policy.read
    assert str(SCRIPT.parent) not in policy.read


AGAIN = ("test_jail.py", "test_pull.py", "test_kills.py", "test_hostile.py", "test_full.py")


@pytest.mark.parametrize(("user", "stage"), CASES)
def test_it_is_the_same_for_others(user: str, stage: str, homes: Path) -> None:
    """As root and as an ordinary user, and where no namespaces are to be had."""
    wanted = decide(facts_of(user, **STAGES[stage]), sockets=False).level
    selected = ["in_its_jail_none_does", "level_is_reported", "lies_as_ollama_lays_it"]
    done = staged(["-k", " or ".join(selected)], AGAIN[:2], user, stage, homes)
    assert f"{wanted}]" in done
    assert "3 passed" in done or "4 passed" in done, done


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("user", "stage"), CASES)
def test_all_of_it_is(user: str, stage: str, homes: Path, measured: Callable[..., None]) -> None:
    done = staged(
        ["--deselect", f"{HERE}/test_jail.py::test_it_is_the_same_for_others"],
        AGAIN,
        user,
        stage,
        homes,
    )
    count = int(done.strip().rpartition("\n")[2].split()[0])
    measured(f"tests of the puller that pass, as {user}, {stage}", count, "≥ 20", "tests")


def staged(options: list[str], files: tuple[str, ...], user: str, stage: str, homes: Path) -> str:
    paths = [str(HERE / each) for each in files]
    command = ["-m", "pytest", "-q", "-rA", "-p", "no:cacheprovider", *options, *paths]
    done = run_staged(command, user, homes, **STAGES[stage])
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "skipped" not in done.stdout.rpartition("\n")[2]
    return done.stdout
