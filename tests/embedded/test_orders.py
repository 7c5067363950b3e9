"""The starter: it starts what it knows and connects to that, and nobody of the three outlives another."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ollama_adapter.embedded import starter
from ollama_adapter.embedded.importer import import_gguf
from ollama_adapter.embedded.orders import Orders, Process
from ollama_adapter.errors import ConnectFailed
from ollama_adapter.system import runners
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.jail import landlock
from tests.embedded import daemons
from tests.embedded.daemons import Daemon, gone, running

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the front keeps its rights"),
]
LISTENS = """
import json, os, socket, sys
told = sys.stdin.readline()
server = socket.create_server(("127.0.0.1", 0))
print(json.dumps({"port": server.getsockname()[1]}), flush=True)
connection, _ = server.accept()
connection.sendall(json.dumps({"told": told, "environment": sorted(os.environ)}).encode())
sys.stdin.read()
"""


def ended_early() -> None:
    raise AssertionError("the starter ended")


@pytest.fixture
async def orders(tmp_path: Path) -> AsyncIterator[Orders]:
    path = tmp_path / "runner.py"
    path.write_text(LISTENS)
    begun = starter.begin(sys.executable, str(path))
    assert begun is not None
    orders = Orders(*begun)
    orders.attach(ended_early)
    yield orders
    orders.close()


async def listening(orders: Orders) -> Process:
    process = await orders.start()
    await process.tell(b"settings\n")
    assert b"port" in await process.report()
    return process


async def test_an_order_brings_a_runner_and_sockets_that_are_connected_to_it(
    orders: Orders, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = await listening(orders)
    with await process.dial(9) as connection:  # whatever port it names
        data = await asyncio.get_running_loop().sock_recv(connection, 1 << 16)
    assert b"settings" in data
    assert b"OLLAMA" not in data
    process.kill()
    assert await process.wait() == process.returncode == -signal.SIGKILL
    process.kill()  # once more, when it is gone
    with pytest.raises(ConnectFailed):
        await process.dial(9)


def children(orders: Orders) -> list[psutil.Process]:
    found = psutil.Process(orders.pid).children()
    return [each for each in found if each.status() != psutil.STATUS_ZOMBIE]


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(daemons.WATCHDOG_S):
        while not condition():
            await asyncio.sleep(0.01)  # noqa: TID251 - another process is waited for


async def test_the_first_order_is_met_by_a_runner_that_has_begun_before_and_no_second_waits(
    orders: Orders,
) -> None:
    await until(lambda: children(orders))
    (waiting,) = children(orders)
    assert (await listening(orders)).pid == waiting.pid
    assert (await listening(orders)).pid != waiting.pid
    assert len(children(orders)) == 2


async def test_a_runner_counts_from_its_order_on_where_it_has_not_waited_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an abort would take the time in which its engine is loaded for its rest."""
    (tmp_path / "xllamacpp.py").write_text("import threading; threading.Event().wait()")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    begun = starter.begin()
    assert begun is not None
    orders, clock = Orders(*begun), SystemClock()
    orders.attach(ended_early)
    await orders.start()
    second = await orders.start()
    await until(lambda: "runner.py" in " ".join(psutil.Process(second.pid).cmdline()))
    sample = runners.take(orders.pid, "", clock)
    orders.close()
    assert sample is not None and second.pid in sample.spent


def pipes(orders: Orders) -> int:
    """How many ends of pipes the starter holds, its standard files apart."""
    found = 0
    for each in Path(f"/proc/{orders.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found += int(each.name) > 2 and os.readlink(each).startswith("pipe:")
    return found


async def test_a_runner_that_ended_while_it_waited_is_replaced_when_it_is_ordered(
    orders: Orders,
) -> None:
    its_own = 2  # by which signals wake it
    await until(lambda: pipes(orders) == its_own + 3)
    (waiting,) = children(orders)
    waiting.kill()
    await until(lambda: pipes(orders) == its_own)
    process = await listening(orders)
    assert process.pid != waiting.pid


async def test_several_runners_are_told_apart(orders: Orders) -> None:
    first, second = await listening(orders), await listening(orders)
    assert first.pid != second.pid
    first.kill()
    await first.wait()
    with await second.dial(0) as connection:
        assert await asyncio.get_running_loop().sock_recv(connection, 8)
    assert second.returncode is None


async def test_an_order_that_the_channel_does_not_take_at_once_is_carried_out_later(
    orders: Orders,
) -> None:
    process = await listening(orders)
    psutil.Process(orders.pid).suspend()
    for nobody in range(1_000, 2_000):
        orders.send({"do": "kill", "id": nobody})
    assert orders._unsent, "the channel has taken all of them"
    asking = asyncio.ensure_future(process.dial(0))
    await asyncio.sleep(0)  # noqa: TID251 - the order is given
    psutil.Process(orders.pid).resume()
    async with asyncio.timeout(daemons.WATCHDOG_S):
        with await asking as connection:
            assert await asyncio.get_running_loop().sock_recv(connection, 8)
    assert not orders._unsent


async def test_who_asks_and_goes_leaves_nothing_open(orders: Orders) -> None:
    process = await listening(orders)
    before = set(os.listdir("/proc/self/fd"))
    asking = [asyncio.ensure_future(process.dial(0)) for _ in range(5)]
    await asyncio.sleep(0)  # noqa: TID251 - the orders are sent
    for each in asking:
        each.cancel()
    await asyncio.gather(*asking, return_exceptions=True)
    with await process.dial(0):  # by now the others have been answered
        assert len(os.listdir("/proc/self/fd")) == len(before) + 1


async def test_a_start_that_is_given_up_ends_its_process(orders: Orders) -> None:
    starting = asyncio.ensure_future(orders.start())
    await asyncio.sleep(0)  # noqa: TID251 - the order is sent
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await listening(orders)  # by now the first has been told of
    assert len(children(orders)) == 1


async def test_a_starter_that_can_start_no_more_says_so_and_goes_on(orders: Orders) -> None:
    process = await listening(orders)
    held = len(os.listdir(f"/proc/{orders.pid}/fd"))
    soft, hard = resource.prlimit(orders.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(orders.pid, resource.RLIMIT_NOFILE, (held + 2, hard))
    with pytest.raises(OSError, match="open files"):
        await orders.start()
    resource.prlimit(orders.pid, resource.RLIMIT_NOFILE, (soft, hard))
    await listening(orders)
    assert process.returncode is None


async def test_the_end_of_the_starter_is_told_once(tmp_path: Path) -> None:
    begun = starter.begin()
    assert begun is not None
    orders = Orders(*begun)
    told = asyncio.Event()
    orders.attach(told.set)
    os.kill(orders.pid, signal.SIGKILL)
    await told.wait()
    orders.send({"do": "start", "id": 1})  # nobody is there any more
    orders.close()


@pytest.fixture
def own(store_root: Path) -> Iterator[Daemon]:
    with running(store_root) as daemon:
        daemon.generate("")
        yield daemon


@pytest.mark.parametrize("victim", ["front", "starter"])
def test_nobody_outlives_the_front_or_the_starter(victim: str, own: Daemon) -> None:
    family = own.family()
    assert len(family) == 2
    os.kill(own.process.pid if victim == "front" else own.starter().pid, signal.SIGKILL)
    code = own.process.wait(daemons.WATCHDOG_S)
    assert code == (-signal.SIGKILL if victim == "front" else 1)
    assert own.process.stderr is not None
    said = own.process.stderr.read().decode()
    assert said.startswith("Error: " if victim == "starter" else "")
    assert said.count("\n") == (victim == "starter")
    assert gone(family)
    with socket.create_server(("127.0.0.1", own.port)):
        pass  # the port is free


def group_of(leader: int) -> set[int]:
    """Who of a process group lives, the leader's own zombie apart."""
    found = set()
    for each in psutil.process_iter(["status"]):
        with contextlib.suppress(OSError):
            if os.getpgid(each.pid) == leader and each.info["status"] != psutil.STATUS_ZOMBIE:
                found.add(each.pid)
    return found


@pytest.mark.timeout(900)
@pytest.mark.parametrize("victim", ["front", "starter", "runner"])
def test_killed_at_any_moment_nobody_is_left(
    victim: str, store_root: Path, scaled: Callable[[int], int]
) -> None:
    moments = random.Random(victim)
    for _ in range(scaled(100)):
        port = daemons.free_port()
        process = daemons.spawn(store_root, port, True)
        daemon = Daemon(process, port, store_root)
        load = threading.Thread(target=load_a_model, args=(daemon,), daemon=True)
        load.start()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.0, 1.5))
        found = {"front": [psutil.Process(process.pid)]}
        found["starter"] = [each for each in daemon.family() if daemons.is_starter(each)]
        found["runner"] = daemon.runners()
        for each in found[victim]:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        if not found[victim] or victim == "runner":  # it had not begun, or is not the whole
            process.terminate()
        process.communicate(timeout=daemons.WATCHDOG_S)
        while group_of(process.pid):
            pass
        load.join(daemons.WATCHDOG_S)


def load_a_model(daemon: Daemon) -> None:
    while daemon.process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            daemon.generate("", options={"num_ctx": random.randint(64, 512)})


@pytest.mark.parametrize("inside", [True, False])
def test_the_front_opens_no_file_outside_its_store(
    inside: bool, files: Path, tmp_path: Path
) -> None:
    models = tmp_path / "models"
    import_gguf(files / "tiny.gguf", "tiny", models)
    blob = max((models / "blobs").iterdir(), key=lambda each: each.stat().st_size)
    elsewhere = (models if inside else tmp_path) / "weights"
    blob.rename(elsewhere)
    blob.symlink_to(elsewhere)
    with running(models) as daemon:
        opened = daemon.ask("/api/show", {"model": "tiny"}).status == 200
    assert opened is (inside or not landlock.abi())
