"""From a registry to a token: who downloads, into which store, and with whose consent."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from ollama_adapter import (
    BlockingAdapter,
    Config,
    DaemonConfig,
    DaemonMode,
    OllamaAdapter,
    PoolConfig,
)
from ollama_adapter.config import Pulling
from ollama_adapter.embedded.store import Store
from ollama_adapter.errors import (
    ModelNotFound,
    ProtocolError,
    PullFailed,
    PullRefused,
    RemoteModelRefused,
)
from ollama_adapter.events import LoadPhase, LoadProgress, PullOffer, PullProgress, PullStage
from ollama_adapter.testing import Piece, ScriptedDaemon, ScriptedRequest, response
from tests.embedded.ggufs import llama
from tests.registry.serving import Registry, running

pytestmark = pytest.mark.anyio
WATCHDOG_S = 60.0
GREEDY: dict[str, Any] = {"temperature": 0}
WEIGHTS = llama()
RECORDS = (
    b'{"status":"pulling manifest"}\n',
    b'{"status":"pulling aa","digest":"sha256:aa","total":1000,"completed":400}\n',
    b'{"status":"pulling aa","digest":"sha256:aa","total":1000,"completed":1000}\n',
    b'{"status":"success"}\n',
)


@pytest.fixture
def registry() -> Iterator[Registry]:
    with running() as registry:
        yield registry


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A place that every user may enter, ours for what the adapter keeps as well."""
    with tempfile.TemporaryDirectory(prefix="store-") as name:
        Path(name).chmod(0o755)
        monkeypatch.setenv("XDG_DATA_HOME", f"{name}/data")
        monkeypatch.setenv("XDG_STATE_HOME", f"{name}/state")
        yield Path(name) / "models"


def adapter_for(
    store: Path, *registries: str, port: int = 0, pulling: Pulling = Pulling.NEVER
) -> OllamaAdapter:
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, models_dir=str(store))
    if port:
        daemon = DaemonConfig(mode=DaemonMode.ADOPT, port=port, models_dir=str(store))
    return OllamaAdapter(Config(daemon, PoolConfig(registries=registries, pulling=pulling)))


class Daemon:
    """An adopted one: whether it sees our store, and what it says when it is told to pull."""

    def __init__(self, *records: bytes, sees: Callable[[str], bool] = lambda _: False) -> None:
        self.records = records
        self.sees = sees
        self.asked: list[str] = []

    def __call__(self, request: ScriptedRequest) -> list[Piece]:
        self.asked.append(f"{request.method} {request.path.partition('sha256:')[0]}")
        if request.path == "/api/pull":
            return [response(b"".join(self.records))]
        return [response(b"", 200 if self.sees(request.path.rpartition("/")[2]) else 404)]


async def test_a_model_that_was_pulled_answers_without_a_restart(
    registry: Registry, store: Path
) -> None:
    name = registry.add("small", WEIGHTS)
    adapter = adapter_for(store, registry.host)
    with anyio.fail_after(WATCHDOG_S):
        async with adapter:
            with pytest.raises(ModelNotFound):
                await adapter.generate(name, "Hello", num_predict=4, **GREEDY)
            seen: list[PullProgress] = []
            receipt = await adapter.pull(name, seen.append)
            answer = await adapter.generate(name, "Hello", num_predict=4, **GREEDY)
    assert answer.statistics.eval_count == 4, "its tokens may be halves of characters"
    assert receipt.by == "ollama-adapter"
    assert seen[-1].stage is PullStage.DONE
    assert sorted(each.name for each in store.iterdir()) == ["blobs", "manifests"]
    assert not (store.parent / "data" / "ollama-adapter" / ".pulling").exists()


async def test_a_model_that_was_pulled_anew_is_loaded_anew(registry: Registry, store: Path) -> None:
    name = registry.add("small", WEIGHTS)
    adapter = adapter_for(store, registry.host)
    with anyio.fail_after(WATCHDOG_S):
        async with adapter:
            await adapter.pull(name)
            await adapter.generate(name, "Hello", num_predict=4, **GREEDY)
            before = adapter.pool.digest(name)
            assert adapter.pool.is_warm(name, {})
            registry.add("small", llama(context=256))
            await adapter.pull(name)
            assert not adapter.pool.is_warm(name, {}), "it is another model"
            await adapter.generate(name, "Hello", num_predict=4, **GREEDY)
            assert adapter.pool.digest(name) not in ("", before)
            assert [each.num_ctx for each in adapter.pool.residents()] == [256]


async def test_the_pool_may_pull_only_where_the_settings_say_so(
    registry: Registry, store: Path
) -> None:
    name = registry.add("small", WEIGHTS)
    seen: list[LoadProgress] = []
    never = adapter_for(store, registry.host)
    with pytest.raises(PullRefused, match="is not on this machine") as caught:
        await never.source.pull_missing(name, seen.append)
    assert f"ollama-adapter pull {name}" in caught.value.hint
    assert "always" in caught.value.hint
    assert (seen, registry.requests) == ([], [])
    await never.aclose()
    always = adapter_for(store, registry.host, pulling=Pulling.ALWAYS)
    try:
        with anyio.fail_after(WATCHDOG_S):
            await always.source.pull_missing(name, seen.append)
    finally:
        await always.aclose()
    assert {each.phase for each in seen} == {LoadPhase.PULLING}
    assert len(Store(store, bundled=False).models()) == 1


async def test_a_model_that_is_missing_is_pulled_and_answers_where_the_settings_say_so(
    registry: Registry, store: Path
) -> None:
    name = registry.add("small", WEIGHTS)
    async with adapter_for(store, registry.host, pulling=Pulling.ALWAYS) as adapter:
        with anyio.fail_after(WATCHDOG_S):
            seen: list[LoadProgress] = []
            adapter.pool.on_progress(seen.append)
            answers = await asyncio.gather(
                adapter.generate(name, "Hello", num_predict=3, **GREEDY),
                adapter.generate(name, "Hello", num_predict=3, **GREEDY),
            )
    assert [each.statistics.eval_count for each in answers] == [3, 3]
    assert [each.statistics.served_by for each in answers] == [name, name]
    assert LoadPhase.PULLING in {each.phase for each in seen}
    assert registry.twice() == 0


def test_without_await_it_is_the_same(registry: Registry, store: Path) -> None:
    name = registry.add("small", WEIGHTS)
    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, models_dir=str(store))
    seen: list[PullProgress] = []
    with BlockingAdapter(Config(daemon, PoolConfig(registries=(registry.host,)))) as adapter:
        receipt = adapter.pull(name, seen.append)
    assert receipt.total_bytes == seen[-1].done_bytes


async def test_a_registry_that_is_not_listed_is_refused_whoever_would_pull(
    registry: Registry, store: Path
) -> None:
    script = Daemon(*RECORDS)
    async with ScriptedDaemon(script) as daemon:
        adapter = adapter_for(store, port=daemon.port)
        try:
            with pytest.raises(PullRefused, match=registry.host):
                await adapter.pull(f"{registry.host}/library/small")
            with pytest.raises(RemoteModelRefused):
                await adapter.pull("gpt-oss:20b-cloud")
        finally:
            await adapter.aclose()
    assert script.asked == []


async def test_a_daemon_that_sees_our_store_has_it_filled_by_us(
    registry: Registry, store: Path
) -> None:
    def sees(digest: str) -> bool:
        return (store / "blobs" / digest.replace(":", "-")).is_file()

    script = Daemon(sees=sees)
    async with ScriptedDaemon(script) as daemon:
        adapter = adapter_for(store, registry.host, port=daemon.port)
        try:
            with anyio.fail_after(WATCHDOG_S):
                receipt = await adapter.pull(registry.add("small", WEIGHTS))
        finally:
            await adapter.aclose()
    assert receipt.by == "ollama-adapter"
    assert script.asked == ["HEAD /api/blobs/"]
    blobs = {each.name.replace("-", ":", 1) for each in (store / "blobs").iterdir()}
    assert blobs == set(registry.blobs), "what it was asked about is gone"


async def test_one_that_does_not_downloads_by_itself_and_that_is_said(store: Path) -> None:
    script, seen, offers = Daemon(*RECORDS), list[PullProgress](), list[PullOffer]()

    async def yes(offer: PullOffer) -> bool:
        offers.append(offer)
        return True

    async with ScriptedDaemon(script) as daemon:
        adapter = adapter_for(store, port=daemon.port)
        try:
            receipt = await adapter.pull("llama3.2:1b", seen.append, confirm=yes)
        finally:
            await adapter.aclose()
    assert (receipt.by, receipt.total_bytes, receipt.hosts) == ("the daemon", 1000, ())
    assert offers[0].by == "the daemon"
    assert offers[0].registry == "registry.ollama.ai"
    assert [each.done_bytes for each in seen] == sorted(each.done_bytes for each in seen)
    assert seen[-1].stage is PullStage.DONE
    assert seen[-1].done_bytes == seen[-1].total_bytes == 1000
    assert not list((store / "blobs").iterdir())


@pytest.mark.parametrize(
    ("records", "kind", "words"),
    [
        ((*RECORDS[:1], b'{"error":"no such host"}\n'), PullFailed, "no such host"),
        (RECORDS[:3], PullFailed, "before it was complete"),
        ((b"<html>\n",), ProtocolError, "no record of a download"),
    ],
)
async def test_its_failure_is_told(
    records: tuple[bytes, ...], kind: type[Exception], words: str, store: Path
) -> None:
    async with ScriptedDaemon(Daemon(*records)) as daemon:
        adapter = adapter_for(store, port=daemon.port)
        try:
            with pytest.raises(kind, match=words):
                await adapter.pull("llama3.2:1b")
        finally:
            await adapter.aclose()


async def test_it_is_not_asked_to_without_consent(store: Path) -> None:
    script = Daemon(*RECORDS)

    async def no(_: PullOffer) -> bool:
        return False

    async with ScriptedDaemon(script) as daemon:
        adapter = adapter_for(store, port=daemon.port)
        try:
            with pytest.raises(PullRefused, match="you said no"):
                await adapter.pull("llama3.2:1b", confirm=no)
        finally:
            await adapter.aclose()
    assert "POST /api/pull" not in script.asked
