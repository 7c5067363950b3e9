"""Whatever listens in the daemon's place, and whatever it sends: no prompt leaks, and the call ends.

Every rogue strikes at every stage. A rogue that has not been taken for a daemon gets no prompt; nobody
else gets one ever; the call ends with an error of ours, by name, with a hint and without the prompt.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter, PoolConfig, StreamConfig
from ollama_adapter import client as client_module
from ollama_adapter.errors import AdapterError, DaemonNotFound
from ollama_adapter.system import fetching, settings
from ollama_adapter.system.jail import levels
from tests.rogues import ENDS, ROGUES, WAITING, WELL, WITH_PROMPT, Stage, Wire
from tests.rogues.watch import TRAIL, Recorder, Server, listening

pytestmark = pytest.mark.anyio
PROMPT = "Kolibri-5829: a prompt that is nobody's business"
SHORT_S = 0.1  # the limit of a stage at which only a limit ends the call
LONG_S = 60.0
WATCHDOG_S = 30.0
EVERYWHERE = [name for name in ROGUES if len(ENDS[name]) == len(Stage)]
TURNS = (Stage.SHOW, Stage.RESIDENTS, Stage.LOAD, Stage.EMBED)
PROXIES = (
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "ftp_proxy",
    "socks_proxy",
    "ws_proxy",
    "wss_proxy",
    "ollama_proxy",
)
MOST_BYTES = fetching.MAX_BODY_BYTES + (16 << 20)  # what the sockets' buffers hold included


def config_for(port: int, stage: Stage | None = None) -> Config:
    """Generous, but where `stage` is to end by its limit."""

    def limit(*here: Stage) -> float:
        return SHORT_S if stage in here else LONG_S

    return Config(
        daemon=DaemonConfig(
            port=port, mode=DaemonMode.ADOPT, probe_timeout_s=limit(Stage.PROBE), restart_tries=1
        ),
        pool=PoolConfig(load_s=limit(Stage.LOAD)),
        stream=StreamConfig(
            connect_s=LONG_S,
            first_token_s=limit(Stage.GENERATE, Stage.EMBED),
            next_token_s=limit(Stage.GENERATE),
        ),
    )


async def ask(config: Config, stage: Stage) -> AdapterError | None:
    """One whole call, from the probe to the end; the error that it ends with."""
    adapter = OllamaAdapter(config)
    try:
        if stage is Stage.EMBED:
            await adapter.embed("tiny", PROMPT)
        else:
            async for _ in adapter.generate_stream("tiny", PROMPT):
                pass
    except AdapterError as error:
        return error
    finally:
        await adapter.aclose()
    return None


def assert_silent(error: AdapterError) -> None:
    """It says what to do, and nothing of the prompt."""
    assert error.hint, f"{type(error).__name__} does not say what to do: {error}"
    told = [str(error), repr(error), error.hint, repr(vars(error))]
    told += traceback.format_exception(error)
    for secret in (PROMPT, PROMPT[:12], PROMPT[-12:]):
        assert not [each for each in told if secret in each], "the error tells the prompt"


LYING_WORLD = """
import asyncio, socket, sys
from ollama_adapter import OllamaAdapter
from ollama_adapter.system.jail.linux import syscall

NEW_USER, NEW_MOUNTS, BIND = 0x10000000, 0x00020000, 0x1000
try:
    syscall("unshare", NEW_USER | NEW_MOUNTS)
    syscall("mount", sys.argv[1].encode(), b"/etc/hosts", None, BIND, None)
except OSError:
    sys.exit("refused")
print(socket.gethostbyname("localhost"))

async def main():
    async with OllamaAdapter() as adapter:
        print((await adapter.generate("tiny", "x")).text)

asyncio.run(main())
"""


async def strike(name: str, stage: Stage) -> None:
    """One rogue at one stage: everything that must hold."""
    server, recorder = Server(ROGUES[name], stage), Recorder()
    async with listening(recorder) as server.elsewhere, listening(server) as port:
        with TRAIL.watching():
            error = await ask(config_for(port, stage if name in WAITING else None), stage)
        if server.open:
            await asyncio.wait(server.open)  # the client has dropped each connection
    ended = WELL if error is None else type(error).__name__
    assert ended == ENDS[name][stage], f"{name} at {stage} ends with {error!r}"
    if error is not None:
        assert_silent(error)
    assert recorder.heard == [], f"{name} at {stage} leads elsewhere"
    TRAIL.assert_only(port)
    told = {stage for stage, request in server.received if PROMPT.encode() in request}
    last = {Stage.EMBED} if stage is Stage.EMBED else {Stage.GENERATE}
    assert told == (last if stage in WITH_PROMPT or error is None else set()), f"{name} at {stage}"
    assert server.sent <= MOST_BYTES, f"{name} at {stage} was listened to for too long"


async def strike_in_time(name: str, stage: Stage) -> None:
    asyncio.get_running_loop().set_debug(False)  # it takes longer than what is tested
    with anyio.fail_after(WATCHDOG_S), pytest.MonkeyPatch.context() as patch:
        if name in WAITING and stage in (Stage.SHOW, Stage.RESIDENTS):
            patch.setattr(client_module, "ANSWER_S", SHORT_S)
        await strike(name, stage)


@pytest.fixture
def stages(scaled: Callable[[int], int]) -> Callable[[str], list[Stage]]:
    """All of them in the full count; else the first and the last, and of the others one each in turn."""

    def chosen(name: str) -> list[Stage]:
        turn = TURNS[EVERYWHERE.index(name) % len(TURNS)]
        return list(Stage) if scaled(100) > 1 else [Stage.PROBE, Stage.GENERATE, turn]

    return chosen


@pytest.mark.parametrize("name", EVERYWHERE)
async def test_a_rogue_gets_no_prompt_before_its_time_and_ends_nothing_but_the_call(
    name: str, stages: Callable[[str], list[Stage]]
) -> None:
    for stage in stages(name):
        await strike_in_time(name, stage)


@pytest.mark.parametrize("stage", Stage)
async def test_a_wrong_value_ends_nothing_but_the_call(stage: Stage) -> None:
    for name in ROGUES:
        if list(ENDS[name]) == [stage]:
            await strike_in_time(name, stage)


def test_the_matrix_is_as_large_as_it_says() -> None:
    assert len(EVERYWHERE) >= 80
    assert len(ROGUES) >= 140


# The world around an honest daemon


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


async def honest_session(port: int, recorder: Recorder) -> None:
    """A whole session: nobody but the daemon hears of it, and no name is looked up."""
    for stage in WITH_PROMPT:
        with TRAIL.watching():
            assert await ask(config_for(port), stage) is None
        TRAIL.assert_only(port)
    assert recorder.heard == []


@pytest.fixture
def honest() -> Server:
    async def answer(wire: Wire) -> None:
        await wire.answer(wire.honest)

    return Server(answer, Stage.PROBE)


@pytest.mark.parametrize("spelling", ["upper", "lower", "title"])
@pytest.mark.parametrize("scheme", ["http://", "socks5h://", ""])
async def test_no_proxy_variable_is_followed(
    spelling: str, scheme: str, honest: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    with anyio.fail_after(WATCHDOG_S):
        async with listening(recorder) as elsewhere, listening(honest) as port:
            for name in PROXIES:
                monkeypatch.setenv(getattr(name, spelling)(), f"{scheme}127.0.0.1:{elsewhere}")
            for name in ("NO_PROXY", "no_proxy"):
                monkeypatch.setenv(name, "")
            await honest_session(port, recorder)


async def test_no_file_of_the_user_leads_elsewhere(
    honest: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    with anyio.fail_after(WATCHDOG_S):
        async with listening(recorder) as elsewhere, listening(honest) as port:
            (tmp_path / "hosts").write_text("localhost squatter\n127.0.0.1 squatter\n")
            (tmp_path / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
            (tmp_path / ".curlrc").write_text(f"proxy = 127.0.0.1:{elsewhere}\n")
            monkeypatch.setenv("HOME", str(tmp_path))
            monkeypatch.setenv("HOSTALIASES", str(tmp_path / "hosts"))
            monkeypatch.setenv("RES_OPTIONS", "debug")
            monkeypatch.setenv("LOCALDOMAIN", "example.org")
            monkeypatch.setenv("OLLAMA_HOST", f"localhost:{port}")
            assert settings.load_config().daemon.host == "127.0.0.1"
            await honest_session(settings.load_config().daemon.port, recorder)


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback")
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "0.0.0.0"])
async def test_a_squatter_on_the_same_port_of_ipv6_is_not_talked_to(
    host: str, honest: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder()
    with anyio.fail_after(WATCHDOG_S):
        async with listening(honest) as port, listening(recorder, "::1", port):
            monkeypatch.setenv("OLLAMA_HOST", f"{host}:{port}")
            await honest_session(settings.load_config().daemon.port, recorder)
        async with listening(recorder, "::1", port):  # alone, it is as if nobody were there
            error = await ask(config_for(port), Stage.GENERATE)
    assert isinstance(error, DaemonNotFound)
    assert_silent(error)
    assert recorder.heard == []


async def test_a_squatter_of_another_loopback_address_is_not_talked_to(honest: Server) -> None:
    recorder = Recorder()
    with anyio.fail_after(WATCHDOG_S):
        async with listening(honest) as port, listening(recorder, "127.0.0.2", port):
            await honest_session(port, recorder)


@pytest.mark.skipif(sys.platform != "linux", reason="mounts a file over another, as Linux can")
async def test_a_hosts_file_that_names_localhost_otherwise_is_not_read(
    honest: Server, tmp_path: Path
) -> None:
    recorder = Recorder()
    (tmp_path / "hosts").write_text("127.0.0.2 localhost\n")
    with anyio.fail_after(WATCHDOG_S):
        async with listening(honest) as port, listening(recorder, "127.0.0.2", port):
            done = await anyio.run_process(
                [sys.executable, "-c", LYING_WORLD, str(tmp_path / "hosts")],
                env={
                    **os.environ,
                    "HOME": str(tmp_path),
                    "OLLAMA_HOST": f"localhost:{port}",
                    "OLLAMA_ADAPTER_DAEMON_MODE": "adopt",
                },
                check=False,
            )
    if done.stderr == b"refused\n":
        assert levels.probe().namespaces, "namespaces can be had here, and were refused"
        return
    assert done.stdout.split() == [b"127.0.0.2", b"yes"], done.stderr
    assert recorder.heard == []
