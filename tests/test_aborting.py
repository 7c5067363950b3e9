"""Aborts that are confirmed, or say why they are not: with real processes, whose CPU time is read."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_adapter import (
    Config,
    DaemonConfig,
    DaemonMode,
    Finish,
    OllamaAdapter,
    StreamConfig,
    TokenStream,
)
from ollama_adapter.config import Rung
from ollama_adapter.core.aborts import Doubt
from ollama_adapter.errors import SessionNotFound
from ollama_adapter.events import AbortReceipt, Phase
from ollama_adapter.system.dialing import find_free_port
from tests.embedded import daemons
from tests.phases import PhaseDaemon
from tests.serving import collect, config_for, until

pytestmark = pytest.mark.anyio

WATCHDOG_S = 60.0
LIMIT_S = 0.4
"""For a runner that never comes to rest; long enough for three samples."""
MODEL = "tinydoc"
ENDLESS = {"type": "array", "items": {"type": "integer"}, "minItems": 4000}
"""A schema that keeps the model busy: it may not end before 4000 numbers."""
BUSY: dict[str, Any] = {"format": ENDLESS, "num_predict": 100_000}
SPINNING = Path(__file__).parent / "spinning_ollama.py"


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        path = tmp_path_factory.mktemp("home")
        patch.setenv("HOME", str(path))
        for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "OLLAMA_MODELS"):
            patch.delenv(name, raising=False)
        yield path


def config(mode: DaemonMode, stream: dict[str, Any], **daemon: Any) -> Config:
    return Config(
        daemon=DaemonConfig(mode=mode, **({"sandbox": "none"} | daemon)),
        stream=StreamConfig(**stream),
    )


@pytest.fixture(scope="module")
async def real(home: Path, anyio_backend: object) -> AsyncIterator[OllamaAdapter]:
    """The embedded daemon with a real model in a real runner."""
    settings = config(DaemonMode.EMBEDDED, {"abort_s": WATCHDOG_S, "buffer_tokens": 4})
    # without the pool's watch: a task that would outlive the test in which it begins
    settings = replace(settings, pool=replace(settings.pool, watch_s=0.0))
    async with OllamaAdapter(settings) as adapter:
        yield adapter


def install(place: Path, *behaviour: str) -> Path:
    """The daemon whose runners never rest, as a program."""
    path = place / "ollama"
    source = SPINNING.read_text("utf-8").splitlines(keepends=True)[1:]
    path.write_text(f"#!{sys.executable}\n" + "".join(source), "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    (place / "behaviour").write_text(" ".join(behaviour))
    return path


@contextlib.asynccontextmanager
async def spinning(
    place: Path, *behaviour: str, ladder: tuple[Rung, ...] = (), limit_s: float = LIMIT_S
) -> AsyncIterator[OllamaAdapter]:
    """That daemon, spawned by us."""
    stream = {"abort_s": limit_s, "abort_ladder": ladder}
    path = str(install(place, *behaviour))
    async with OllamaAdapter(config(DaemonMode.OLLAMA, stream, ollama_path=path)) as adapter:
        yield adapter


def runners_of(adapter: OllamaAdapter) -> list[psutil.Process]:
    assert adapter.daemon.pid is not None
    return psutil.Process(adapter.daemon.pid).children()


def cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def begun(adapter: OllamaAdapter, model: str = "m", **keywords: Any) -> TokenStream:
    """A stream that has its first token."""
    tokens = adapter.generate_stream(model, "x", **keywords)
    assert (await anext(tokens)).token
    return tokens


async def abort(adapter: OllamaAdapter, tokens: TokenStream) -> AbortReceipt:
    async with asyncio.timeout(WATCHDOG_S):
        receipt = await adapter.abort(tokens.session_id)
    assert receipt.session_id == tokens.session_id
    assert receipt.events_after == 0
    assert receipt.close_ms >= 0
    assert receipt.confirmed == (receipt.idle_ms is not None) == (receipt.reason == "")
    assert await collect(tokens) == []
    return receipt


# A real runner


async def test_it_is_confirmed_when_the_runner_stands_still(real: OllamaAdapter) -> None:
    tokens = await begun(real, MODEL, **BUSY)
    (runner,) = runners_of(real)
    before = cpu_of(runner)
    receipt = await abort(real, tokens)
    spent = cpu_of(runner)
    assert (receipt.phase, receipt.confirmed, receipt.rungs) == (Phase.DECODING, True, ())
    assert tokens.statistics.finish is Finish.ABORTED
    assert spent >= before
    again = await real.abort(tokens.session_id)
    assert (again.phase, again.confirmed, again.reason) == (Phase.ENDED, False, Doubt.ENDED)
    with pytest.raises(SessionNotFound) as unknown:
        await real.abort("never was")
    assert "session_id" in unknown.value.hint
    assert cpu_of(runner) == spent, "it was said to be at rest, and worked on"


async def test_it_is_confirmed_in_every_phase(real: OllamaAdapter) -> None:
    fresh = real.generate_stream(MODEL, "x")
    receipt = await abort(real, fresh)
    assert (receipt.phase, receipt.confirmed, receipt.idle_ms) == (Phase.NOT_STARTED, True, 0.0)
    await real.pool.unload(MODEL)
    loading = real.generate_stream(MODEL, "x")
    async with asyncio.TaskGroup() as group:
        reader = group.create_task(collect(loading))
        await until(lambda: real.pool.is_loading(MODEL))
        receipt = await abort(real, loading)
        assert (receipt.phase, receipt.confirmed) == (Phase.LOADING, True), receipt
    assert reader.result() == []
    paused = await begun(real, MODEL, **BUSY)
    await until(lambda: paused._session.paused)
    receipt = await abort(real, paused)
    assert (receipt.phase, receipt.confirmed) == (Phase.DECODING, True), receipt


async def test_it_is_not_confirmed_while_another_session_uses_the_runner(
    real: OllamaAdapter,
) -> None:
    async with await begun(real, MODEL, **BUSY) as other:
        tokens = real.generate_stream(MODEL, "y", **BUSY)
        async with asyncio.TaskGroup() as group:
            reader = group.create_task(collect(tokens))
            await until(lambda: tokens._session.exchange)
            receipt = await abort(real, tokens)
        assert reader.result() == []
        assert (receipt.phase, receipt.reason) == (Phase.QUEUED, Doubt.SHARED)
        assert [each.token for each in [await anext(other) for _ in range(9)]]


async def test_a_daemon_of_ours_in_its_jail_can_be_seen_as_well(home: Path) -> None:
    jailed = config(DaemonMode.EMBEDDED, {"abort_s": WATCHDOG_S}, sandbox="enforced")
    async with OllamaAdapter(jailed) as adapter:
        assert (await adapter.health()).sandbox not in ("", "none")
        receipt = await abort(adapter, await begun(adapter, MODEL, **BUSY))
    assert receipt.confirmed, receipt


async def test_an_adopted_daemon_of_our_own_user_can_be_seen_as_well(home: Path) -> None:
    with daemons.running(home / "models") as daemon:
        adopted = config(DaemonMode.ADOPT, {"abort_s": WATCHDOG_S}, port=daemon.port)
        async with OllamaAdapter(adopted) as adapter:
            receipt = await abort(adapter, await begun(adapter, MODEL, **BUSY))
    assert receipt.confirmed, receipt


# One that works on


async def test_a_runner_that_works_on_is_said_to_do_so(tmp_path: Path) -> None:
    async with spinning(tmp_path) as adapter:
        receipt = await abort(adapter, await begun(adapter))
        assert receipt.reason == f"its runner still worked after {LIMIT_S:g} s"
        assert receipt.rungs == ()
        assert len(runners_of(adapter)) == 1


async def test_the_ladder_is_climbed_until_it_helps(tmp_path: Path) -> None:
    ladder = (Rung.UNLOAD, Rung.RESTART)
    async with spinning(tmp_path, ladder=ladder) as adapter:
        receipt = await abort(adapter, await begun(adapter))
        assert (receipt.confirmed, receipt.rungs) == (True, ("unload",)), receipt
        assert runners_of(adapter) == []
        assert not adapter.pool.is_warm("m", {}), "it is not in memory any more"


async def test_a_daemon_that_does_not_unload_has_its_runner_ended(tmp_path: Path) -> None:
    ladder = (Rung.UNLOAD, Rung.RESTART)
    async with spinning(tmp_path, "keeps", ladder=ladder) as adapter:
        elsewhere = await begun(adapter, "other")
        receipt = await abort(adapter, await begun(adapter))
        assert (receipt.confirmed, receipt.rungs) == (True, ("unload", "restart")), receipt
        (left,) = [each for each in runners_of(adapter) if each.status() != "zombie"]
        assert "sha256-other" in left.cmdline()[-1]
        assert [await anext(elsewhere) for _ in range(9)], "the other session was hurt"
        await elsewhere.stop()


async def test_no_rung_hurts_another_session(tmp_path: Path) -> None:
    ladder = (Rung.UNLOAD, Rung.RESTART)
    async with spinning(tmp_path, ladder=ladder) as adapter:
        for name in ("m", "M:LATEST", "alias-m"):
            async with await begun(adapter, name) as other:
                receipt = await abort(adapter, await begun(adapter))
                assert receipt.rungs == ()
                assert receipt.reason == (
                    f"{Doubt.SHARED}; unload would hurt another session of this model"
                    "; restart would hurt another session of this model"
                )
                assert [await anext(other) for _ in range(9)]


async def test_runners_that_cannot_be_told_apart_are_left_alone(tmp_path: Path) -> None:
    async with spinning(tmp_path, "nameless", ladder=(Rung.RESTART,)) as adapter:
        other = await begun(adapter, "other")
        receipt = await abort(adapter, await begun(adapter))
        assert receipt.rungs == ()
        assert receipt.reason == f"{Doubt.MINGLED}; restart might hurt the session of another model"
        assert len(runners_of(adapter)) == 2
        await other.stop()


async def test_a_session_that_comes_meanwhile_is_spared(tmp_path: Path) -> None:
    async with spinning(tmp_path, ladder=(Rung.UNLOAD,), limit_s=WATCHDOG_S) as adapter:
        tokens = await begun(adapter)
        async with asyncio.TaskGroup() as group:
            aborting = group.create_task(abort(adapter, tokens))
            await until(lambda: tokens.statistics.finish)
            later = await begun(adapter)
        assert aborting.result().reason.startswith(Doubt.SHARED)
        assert aborting.result().rungs == ()
        await later.stop()


async def test_a_runner_that_has_gone_works_no_more(tmp_path: Path) -> None:
    async with spinning(tmp_path, "dies", limit_s=WATCHDOG_S) as adapter:
        receipt = await abort(adapter, await begun(adapter))
        assert receipt.confirmed, receipt


async def test_an_adopted_daemon_is_never_restarted(tmp_path: Path) -> None:
    port = find_free_port()
    daemon = subprocess.Popen(
        [str(install(tmp_path, "keeps"))],
        env={"OLLAMA_HOST": f"127.0.0.1:{port}", "PATH": os.environ["PATH"]},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert daemon.stderr is not None and daemon.stderr.readline()
        stream = {"abort_s": LIMIT_S, "abort_ladder": (Rung.RESTART, Rung.UNLOAD)}
        async with OllamaAdapter(config(DaemonMode.ADOPT, stream, port=port)) as adapter:
            receipt = await abort(adapter, await begun(adapter))
        assert receipt.rungs == ("unload",)
        assert "restart is only for a daemon that is ours" in receipt.reason
        assert len(psutil.Process(daemon.pid).children()) == 1
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.communicate()


async def test_what_cannot_be_seen_is_said_to_be_so() -> None:
    """The daemon is in this very process: no runner of it can be seen, no more than another user's."""
    async with PhaseDaemon() as daemon, OllamaAdapter(config_for(daemon)) as adapter:
        receipt = await abort(adapter, await begun(adapter))
        assert (receipt.phase, receipt.reason) == (Phase.DECODING, Doubt.UNSEEN)


async def test_an_embedding_or_a_load_of_the_same_model_is_work_of_others() -> None:
    async with PhaseDaemon() as daemon, OllamaAdapter(config_for(daemon)) as adapter:
        async with asyncio.TaskGroup() as group:
            embedding = group.create_task(adapter.embed("m", "silent"))
            await until(lambda: adapter.pool.at_work()["m:latest"])
            receipt = await abort(adapter, await begun(adapter, "M"))
            assert receipt.reason == Doubt.SHARED
            receipt = await abort(adapter, await begun(adapter, "n"))
            assert receipt.reason == Doubt.UNSEEN
            embedding.cancel()
        assert not adapter.pool.at_work()
