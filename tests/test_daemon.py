"""Adopt, spawn, stop: with real processes, and a program that plays `ollama serve`."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import stat
import sys
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import psutil
import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter import OllamaAdapter
from ollama_adapter.config import Config, DaemonConfig, DaemonMode, PoolConfig, Sandbox
from ollama_adapter.core.lifecycle import DaemonState
from ollama_adapter.daemon import OllamaDaemon
from ollama_adapter.errors import (
    DaemonError,
    DaemonExited,
    DaemonNotFound,
    DaemonStartTimeout,
    NotOllama,
)
from ollama_adapter.events import DaemonChange
from ollama_adapter.system import settings, spawning
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.runfile import RunFiles
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing import (
    ManualClock,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    json_response,
    response,
)
from tests.serving import WATCHDOG_S, until

pytestmark = pytest.mark.anyio

FAKE = Path(__file__).parent / "fake_ollama.py"


class Installed:
    """The program, installed into a directory of its own."""

    def __init__(self, directory: Path, *behaviour: str) -> None:
        self._directory = directory
        self.path = directory / "ollama"
        source = FAKE.read_text("utf-8").splitlines(keepends=True)[1:]
        self.path.write_text(f"#!{sys.executable}\n" + "".join(source), "utf-8")
        self.path.chmod(self.path.stat().st_mode | stat.S_IXUSR)
        (directory / "behaviour").write_text(" ".join(behaviour))

    def read(self, name: str) -> str:
        return (self._directory / name).read_text()

    @property
    def pids(self) -> list[int]:
        return [int(each) for each in self.read("starts").split()]

    def config(self, **settings: object) -> DaemonConfig:
        defaults: dict[str, object] = {
            "mode": DaemonMode.OLLAMA,
            "ollama_path": str(self.path),
            "sandbox": "none",  # it writes beside itself; the jail has tests of its own
            "restart_base_s": 0.01,
            "restart_tries": 3,
        }
        return DaemonConfig(**(defaults | settings))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def homes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    directory = tmp_path / "bin"
    directory.mkdir()
    return directory


@asynccontextmanager
async def supervising(config: DaemonConfig) -> AsyncIterator[OllamaDaemon]:
    scope = TaskScope()
    daemon = OllamaDaemon(config, scope, SystemClock())
    try:
        async with asyncio.timeout(WATCHDOG_S):
            yield daemon
    finally:
        await daemon.stop()
        await scope.aclose()


async def until_gone(*pids: int) -> None:
    left = [psutil.Process(each) for each in pids if psutil.pid_exists(each)]
    _, left = psutil.wait_procs(left, timeout=WATCHDOG_S)
    assert not left, f"still there: {left}"


async def test_it_spawns_the_installed_ollama_on_a_free_port_and_stops_it(place: Path) -> None:
    installed = Installed(place, "runner")
    async with supervising(installed.config()) as daemon:
        await daemon.ensure_running()
        health = await daemon.health()
        assert (health.ready, health.origin, health.version) == (True, "spawned", "0.32.15")
        assert health.pid == installed.pids[0]
        assert daemon.port != 11434
    assert daemon.state is DaemonState.STOPPED
    await until_gone(*installed.pids, int(installed.read("runner")))


async def test_the_spawned_daemon_gets_an_environment_of_ours_only(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "LLAMA_ARG_TOOLS", "OLLAMA_DEBUG", "OLLAMA_API_KEY", "SECRET"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OLLAMA_NUM_PARALLEL", "2")
    installed = Installed(place)
    async with supervising(installed.config()) as daemon:
        await daemon.ensure_running()
        environment = json.loads(installed.read("environment"))
        assert environment["OLLAMA_HOST"] == f"127.0.0.1:{daemon.port}"
    assert environment["OLLAMA_NO_CLOUD"] == "1"
    assert environment["OLLAMA_NOPRUNE"] == "1"
    assert environment["OLLAMA_NUM_PARALLEL"] == "2"
    assert environment["HOME"] != os.environ["HOME"]
    strangers = {"HTTP_PROXY", "LLAMA_ARG_TOOLS", "OLLAMA_DEBUG", "OLLAMA_API_KEY", "SECRET"}
    assert not strangers & set(environment)


@pytest.mark.parametrize(("users", "given"), [("", "5"), ("2", "2")])
async def test_the_spawned_daemon_keeps_as_many_models_as_the_tier_says(
    place: Path, monkeypatch: pytest.MonkeyPatch, users: str, given: str
) -> None:
    if users:
        monkeypatch.setenv("OLLAMA_MAX_LOADED_MODELS", users)
    installed = Installed(place)
    config = Config(daemon=installed.config(), pool=PoolConfig(resident_models=5))
    async with OllamaAdapter(config):
        environment = json.loads(installed.read("environment"))
    assert environment["OLLAMA_MAX_LOADED_MODELS"] == given


async def test_a_daemon_that_ignores_sigterm_is_killed(place: Path) -> None:
    installed = Installed(place, "stubborn", "runner")
    async with supervising(installed.config(stop_grace_s=0.2)) as daemon:
        await daemon.ensure_running()
    await until_gone(*installed.pids, int(installed.read("runner")))


async def test_a_daemon_that_runs_is_adopted_and_never_stopped() -> None:
    async with ScriptedDaemon(lambda _: []) as running:
        async with supervising(DaemonConfig(port=running.port)) as daemon:
            await daemon.ensure_running()
            health = await daemon.health()
            assert health.origin == "adopted"
            assert health.sandbox == "adopted, not sandboxed"
            assert health.pid is None
        async with supervising(DaemonConfig(port=running.port)) as daemon:
            await daemon.ensure_running()
            assert daemon.state is DaemonState.READY


@pytest.mark.parametrize("mode", [DaemonMode.ADOPT, DaemonMode.OLLAMA])
async def test_where_no_daemon_can_be_had_what_would_help_in_this_mode_is_said(
    mode: DaemonMode, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    monkeypatch.setenv("PATH", str(place))
    async with supervising(DaemonConfig(port=find_free_port(), mode=mode)) as daemon:
        with pytest.raises(DaemonNotFound) as caught:
            await daemon.ensure_running()
        assert (str(daemon.port) in str(caught.value)) is (mode is DaemonMode.ADOPT)
        assert f"daemon.mode is {mode}" in caught.value.hint
        assert "pip install" not in caught.value.hint, "our own daemon is not used in this mode"
        assert daemon.state is DaemonState.FAILED


async def test_what_did_not_start_is_told_with_its_reason_where_another_starts(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = Installed(place, "fail").config(mode=DaemonMode.AUTO, port=find_free_port())
    async with supervising(config) as daemon:
        await daemon.ensure_running()
        assert daemon.origin == "embedded"
    (told,) = (each.getMessage() for each in caplog.records if each.levelname == "WARNING")
    assert told.startswith("the spawned daemon did not start: ") and "cannot work today" in told


async def test_where_none_starts_all_reasons_are_in_the_error_alone(
    place: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = [sys.executable, "-c", "raise SystemExit('its engine is broken')"]
    monkeypatch.setattr(settings, "embedded_command", lambda: broken)
    port, installed = find_free_port(), Installed(place, "fail")
    config = installed.config(mode=DaemonMode.AUTO, port=port, restart_tries=1)
    async with supervising(config) as daemon:
        with pytest.raises(DaemonExited, match=rf"{port}; .*work today; .*is broken") as caught:
            await daemon.ensure_running()
        assert "install" not in caught.value.hint, "both are installed"
    assert not [each for each in caplog.records if each.levelname == "WARNING"]


@asynccontextmanager
async def stranger(sent: bytes) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(sent)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(response(b"<html>", kind="text/html"), id="a web server"),
        pytest.param(response(b'{"version": 3}'), id="another API"),
        pytest.param(response(b'{"version": "1.0"}', 500), id="an error"),
        pytest.param(b"220 ready\r\n", id="another protocol"),
        pytest.param(b"", id="silence"),
    ],
)
async def test_a_stranger_on_the_port_is_named_and_gets_no_prompt(sent: bytes) -> None:
    async with stranger(sent) as port:
        async with supervising(DaemonConfig(port=port, mode=DaemonMode.ADOPT)) as daemon:
            with pytest.raises(NotOllama) as caught:
                await daemon.ensure_running()
            assert str(port) in str(caught.value)
            assert "OLLAMA_HOST" in caught.value.hint


async def test_with_a_stranger_on_the_port_one_is_spawned_on_another(place: Path) -> None:
    installed = Installed(place)
    async with stranger(response(b"{}")) as port:
        config = installed.config(mode=DaemonMode.AUTO, port=port)
        async with supervising(config) as daemon:
            await daemon.ensure_running()
            assert daemon.port != port
            assert (await daemon.health()).origin == "spawned"


async def test_a_stranger_that_takes_the_chosen_port_first_costs_another_try(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with stranger(response(b"{}")) as taken:
        ports = iter([taken])
        monkeypatch.setattr(spawning, "find_free_port", lambda: next(ports, 0) or find_free_port())
        async with supervising(Installed(place).config()) as daemon:
            await daemon.ensure_running()
            assert daemon.port != taken


async def test_a_daemon_that_fails_to_start_is_told_with_its_last_words(place: Path) -> None:
    async with supervising(Installed(place, "fail").config()) as daemon:
        with pytest.raises(DaemonExited, match="cannot work today") as caught:
            await daemon.ensure_running()
        assert caught.value.returncode == 1


async def test_a_port_lost_to_another_program_is_replaced(place: Path) -> None:
    installed = Installed(place, "port-taken-once")
    async with supervising(installed.config()) as daemon:
        await daemon.ensure_running()
        assert len(installed.pids) == 2


async def test_a_daemon_that_never_gets_ready_is_given_up_and_ended(place: Path) -> None:
    installed = Installed(place, "deaf")
    async with supervising(installed.config(start_timeout_s=1.0, restart_tries=1)) as daemon:
        with pytest.raises(DaemonStartTimeout):
            await daemon.ensure_running()
        await until_gone(*installed.pids)


async def test_a_daemon_that_takes_connections_before_it_answers_is_waited_for(place: Path) -> None:
    installed = Installed(place, "slow")
    async with supervising(installed.config(probe_timeout_s=0.2)) as daemon:
        await daemon.ensure_running()
        assert (place / "answered").exists()
    assert len(installed.pids) == 1


async def test_a_program_that_cannot_be_started_is_said_so(place: Path) -> None:
    path = place / "ollama"
    path.write_text("no program\n")
    path.chmod(0o755)
    config = DaemonConfig(mode=DaemonMode.OLLAMA, ollama_path=str(path), restart_tries=1)
    async with supervising(config) as daemon:
        with pytest.raises(DaemonError, match="cannot be started"):
            await daemon.ensure_running()


async def test_many_callers_share_one_attempt(place: Path) -> None:
    installed = Installed(place)
    async with supervising(installed.config()) as daemon:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(daemon.ensure_running())
        await daemon.ensure_running()
    assert len(installed.pids) == 1
    assert daemon.starts == 1


async def test_a_caller_that_gives_up_leaves_the_attempt_to_the_others(place: Path) -> None:
    installed = Installed(place)
    async with supervising(installed.config()) as daemon:
        async with asyncio.TaskGroup() as group:
            impatient = group.create_task(daemon.ensure_running())
            patient = group.create_task(daemon.ensure_running())
            await checkpoint()
            impatient.cancel()
        assert patient.done() and patient.exception() is None
    assert len(installed.pids) == 1


async def test_a_daemon_that_was_killed_is_replaced_without_being_asked(place: Path) -> None:
    installed = Installed(place, "runner")
    async with supervising(installed.config()) as daemon:
        told: list[DaemonChange] = []
        daemon.on_change(told.append)
        changes = daemon.changes()
        await daemon.ensure_running()
        runner = int(installed.read("runner"))
        os.kill(installed.pids[0], signal.SIGKILL)
        await until(lambda: daemon.starts == 2)
        await until_gone(runner)
        assert (await daemon.health()).pid == installed.pids[1]
    expected = ["starting", "ready", "backing off", "starting", "ready", "stopping", "stopped"]
    assert [each.state for each in told] == expected
    assert [each async for each in changes] == told
    assert "code -9" in told[2].reason


async def test_an_adopted_daemon_that_dies_is_replaced_by_one_of_ours(place: Path) -> None:
    installed = Installed(place)
    async with ScriptedDaemon(lambda _: []) as running:
        config = installed.config(mode=DaemonMode.AUTO, port=running.port, probe_every_s=0.05)
        async with supervising(config) as daemon:
            await daemon.ensure_running()
            assert (await daemon.health()).origin == "adopted"
            await running.stop()
            await until(lambda: daemon.starts == 2)
            assert (await daemon.health()).origin == "spawned"
            assert daemon.port != running.port


async def test_a_daemon_that_falls_silent_is_ended_and_replaced(place: Path) -> None:
    installed = Installed(place, "runner")
    config = installed.config(probe_every_s=0.05, probe_timeout_s=0.2)
    async with supervising(config) as daemon:
        await daemon.ensure_running()
        silent = [installed.pids[0], int(installed.read("runner"))]
        os.kill(silent[0], signal.SIGSTOP)
        await until(lambda: daemon.state is DaemonState.UNHEALTHY)
        await until(lambda: daemon.starts == 2)
        await until_gone(*silent)


async def test_a_daemon_that_recovers_in_time_is_kept(place: Path) -> None:
    installed = Installed(place)
    config = installed.config(probe_every_s=0.05, probe_timeout_s=0.2)
    async with supervising(config) as daemon:
        await daemon.ensure_running()
        os.kill(installed.pids[0], signal.SIGSTOP)
        await until(lambda: daemon.state is DaemonState.UNHEALTHY)
        assert (await daemon.health()).reason
        os.kill(installed.pids[0], signal.SIGCONT)
        await until(lambda: daemon.state is DaemonState.READY)
        assert daemon.starts == 1


async def test_it_gives_up_after_some_failures_and_tries_again_when_asked(place: Path) -> None:
    installed = Installed(place, "fail")
    async with supervising(installed.config()) as daemon:
        for tries in (3, 6):
            with pytest.raises(DaemonExited, match="cannot work today"):
                await daemon.ensure_running()
            assert daemon.state is DaemonState.FAILED
            assert len(installed.pids) == tries
        assert "cannot work today" in (await daemon.health()).reason
        assert len(installed.pids) == 6, "asking for its health starts nothing"


async def test_the_daemon_is_not_asked_while_tokens_flow() -> None:
    async with ScriptedDaemon(lambda _: []) as running:
        clock = ManualClock()
        scope = TaskScope()
        daemon = OllamaDaemon(DaemonConfig(port=running.port), scope, clock)
        flowing = True
        daemon.last_token_ns = lambda: clock.now_ns() if flowing else 0
        await daemon.ensure_running()
        for _ in range(3):
            await until(lambda: clock.sleepers)
            clock.advance(5_000_000_000)
        await until(lambda: clock.sleepers)
        assert len(running.requests) == 1, "tokens are proof enough"
        flowing = False
        clock.advance(5_000_000_000)
        await until(lambda: len(running.requests) == 2)
        await daemon.stop()
        await scope.aclose()


async def test_callers_get_a_verdict_although_tokens_flow() -> None:
    lost = 0

    class Lossy(ScriptedDaemon):
        def _pieces(self, request: ScriptedRequest) -> Iterable[Piece]:
            nonlocal lost
            if lost:
                lost -= 1
                return [None]
            return super()._pieces(request)

    async with Lossy(lambda _: []) as running:
        async with supervising(DaemonConfig(port=running.port, probe_every_s=0.05)) as daemon:
            daemon.last_token_ns = lambda: (
                SystemClock().now_ns()
            )  # another stream flows all the time
            await daemon.ensure_running()
            lost = 1
            assert (await daemon.health()).ready is False
            await daemon.ensure_running()
            assert daemon.state is DaemonState.READY


async def test_asking_for_health_while_it_is_closed_raises_nothing() -> None:
    async with ScriptedDaemon(lambda _: []) as running:
        for turns in range(12):
            async with supervising(DaemonConfig(port=running.port)) as daemon:
                await daemon.ensure_running()
                asking = asyncio.get_running_loop().create_task(daemon.health())
                for _ in range(turns):
                    await checkpoint()
                await daemon.stop()
                await asking


async def test_a_fault_of_the_supervisor_is_told_to_who_waits(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    scope = TaskScope()
    daemon = OllamaDaemon(Installed(place).config(), scope, SystemClock())
    monkeypatch.setattr(daemon, "_ready", broken)
    with pytest.raises(DaemonError, match="ZeroDivisionError"):
        async with asyncio.timeout(WATCHDOG_S):
            await daemon.ensure_running()
    assert daemon.state is DaemonState.STOPPED
    await daemon.stop()
    with pytest.raises(ZeroDivisionError):
        await scope.aclose()


NO_FILES = """
import asyncio, os, resource, sys
from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.errors import AdapterError

async def main():
    config = Config(daemon=DaemonConfig(mode=DaemonMode.EMBEDDED, restart_tries=1))
    adapter = OllamaAdapter(config)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    held = []
    try:
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    try:
        await adapter.generate("m", "p")
    except AdapterError as error:
        os.write(1, repr(error).encode())
    for each in held:
        os.close(each)
    await adapter.aclose()

asyncio.run(main())
"""


async def test_without_free_file_descriptors_the_error_is_one_of_ours() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", NO_FILES), stdout=asyncio.subprocess.PIPE
    )
    async with asyncio.timeout(WATCHDOG_S):
        said, _ = await process.communicate()
    assert b"Too many open files" in said, said


async def test_a_callback_that_raises_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: DaemonChange) -> None:
        raise ZeroDivisionError

    async with ScriptedDaemon(lambda _: []) as running:
        async with supervising(DaemonConfig(port=running.port)) as daemon:
            daemon.on_change(broken)
            await daemon.ensure_running()
            assert daemon.state is DaemonState.READY
    assert "ZeroDivisionError" in caplog.text


FORKING = """
import asyncio, os, sys
from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter
from ollama_adapter.errors import AdapterError

adapter = OllamaAdapter(Config(daemon=DaemonConfig(port=int(sys.argv[1]), mode=DaemonMode.ADOPT)))

async def use():
    try:
        await adapter.ensure_running()
        await adapter.generate("m", "p")
    except AdapterError as error:
        print(error, error.hint, flush=True)

async def main():
    await use()
    return os.fork()

if asyncio.run(main()) == 0:
    asyncio.run(use())
    os._exit(0)
os.wait()
"""


async def test_a_forked_worker_is_told_to_make_an_adapter_of_its_own() -> None:
    async with ScriptedDaemon(lambda _: [json_response({"error": "no"}, 400)]) as running:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", FORKING, str(running.port)), stdout=asyncio.subprocess.PIPE
        )
        said, _ = await process.communicate()
    assert b"forked" in said.splitlines()[-1]
    assert b"of its own in every worker" in said


async def test_a_second_application_is_told_of_the_daemon_of_the_first(
    place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    installed = Installed(place)
    first = RunFiles.of_this_user()
    async with supervising(installed.config()) as daemon:
        await daemon.ensure_running()
        own = first.directory / f"{os.getpid()}.json"
        assert str(daemon.port).encode() in own.read_bytes()
        # as another application that lives would have it: our parent
        other = psutil.Process(os.getppid())
        entry = msgspec.json.decode(own.read_bytes())
        entry |= {"pid": other.pid, "started": other.create_time()}
        (own.parent / f"{other.pid}.json").write_bytes(msgspec.json.encode(entry))
        async with supervising(installed.config()) as second:
            await second.ensure_running()
        assert f"OLLAMA_HOST=127.0.0.1:{daemon.port}" in caplog.text


async def test_closing_during_the_start_leaves_nothing(place: Path) -> None:
    installed = Installed(place, "deaf")
    scope = TaskScope()
    daemon = OllamaDaemon(installed.config(), scope, SystemClock())
    waiting = asyncio.get_running_loop().create_task(daemon.ensure_running())
    await until((place / "starts").exists)
    await daemon.stop()
    await scope.aclose()
    with pytest.raises((asyncio.CancelledError, DaemonExited, DaemonNotFound)):
        await waiting
    await until_gone(*installed.pids)


async def test_the_embedded_daemon_serves_where_nothing_is_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    assert shutil.which("ollama") is None
    async with supervising(DaemonConfig(port=find_free_port())) as daemon:
        await daemon.ensure_running()
        health = await daemon.health()
        assert health.origin == "embedded"
        assert health.version.endswith("-embedded")
        assert health.missing == ()


async def test_a_killed_question_which_sandbox_holds_is_asked_again_and_the_daemon_is_in_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A daemon without a sandbox was the answer to it under "partial", and a refusal under "enforced"."""
    killed = tmp_path / "probe.py"
    killed.write_text(
        "import os, pathlib, signal\n"
        f"pathlib.Path({str(tmp_path / 'asked')!r}).touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    whole, ask = levels.TRAMPOLINE, levels.probe.__wrapped__

    def asks_once_in_vain() -> levels.Facts:
        monkeypatch.setattr(
            levels, "TRAMPOLINE", whole if (tmp_path / "asked").exists() else killed
        )
        return ask()

    monkeypatch.setattr(levels, "probe", asks_once_in_vain)
    config = DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox=Sandbox.PARTIAL, restart_base_s=0.01)
    async with supervising(config) as daemon:
        await daemon.ensure_running()
        assert (tmp_path / "asked").exists()
        assert (await daemon.health()).sandbox not in ("", Level.NONE.words)
