"""One flight per model, and what is believed to be warm."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest

from ollama_adapter.client import OllamaClient
from ollama_adapter.config import PoolConfig
from ollama_adapter.core.requests import generate_request
from ollama_adapter.errors import (
    InvalidRequest,
    ModelLoadFailed,
    ModelNotFound,
    ProtocolError,
    RemoteModelRefused,
)
from ollama_adapter.pool import ModelPool
from ollama_adapter.system.dialing import dial_port
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.testing import (
    ManualClock,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    json_response,
)
from tests.serving import WATCHDOG_S, until

pytestmark = pytest.mark.anyio

LOADED = json_response({"response": "", "done": True, "done_reason": "load"})
CRASHED = json_response({"error": "llama-server process has terminated: exit status 1"}, 500)


class Loading(ScriptedDaemon):
    """A daemon whose loads say what they are told to, and wait for `gate`."""

    def __init__(self, *, shown: bytes | None = None, loaded: bytes = LOADED) -> None:
        super().__init__(lambda _: [])
        self.gate = asyncio.Event()
        self.gate.set()
        self.shown = shown or json_response({"capabilities": ["completion"]})
        self.loaded = loaded

    def _pieces(self, request: ScriptedRequest) -> Iterable[Piece]:
        if request.path in ("/api/ps", "/api/tags"):
            return super()._pieces(request)
        return [self.shown] if request.path == "/api/show" else [self.gate, self.loaded]

    def loads(self) -> list[dict[str, object]]:
        return [each.json() for each in self.requests if each.body and each.path != "/api/show"]


@asynccontextmanager
async def pooling(
    daemon: Loading, load_s: float = 600.0
) -> AsyncIterator[tuple[ModelPool, ManualClock]]:
    clock, scope = ManualClock(), TaskScope()
    async with daemon, asyncio.timeout(WATCHDOG_S):
        client = OllamaClient(dial_port(daemon.port), connect_s=5.0)
        try:
            yield (
                ModelPool(PoolConfig(keep_alive="10s", load_s=load_s), client, scope, clock),
                clock,
            )
        finally:
            await scope.aclose()


async def test_many_callers_share_one_load_and_the_next_finds_it_warm() -> None:
    daemon = Loading()
    daemon.gate.clear()
    async with pooling(daemon) as (pool, _):
        async with asyncio.TaskGroup() as group:
            callers = [group.create_task(pool.ensure_loaded("m")) for _ in range(9)]
            callers.append(group.create_task(pool.ensure_loaded("M:LATEST")))
            await until(daemon.loads)
            daemon.gate.set()
        assert {each.result() for each in callers} == {False}
        assert await pool.ensure_loaded("m") is True
    assert [each["keep_alive"] for each in daemon.loads()] == ["10s"]


async def test_a_caller_that_gives_up_leaves_the_load_to_the_others() -> None:
    daemon = Loading()
    daemon.gate.clear()
    async with pooling(daemon) as (pool, _):
        async with asyncio.TaskGroup() as group:
            impatient = group.create_task(pool.ensure_loaded("m"))
            patient = group.create_task(pool.ensure_loaded("m"))
            await until(daemon.loads)
            impatient.cancel()
            await asyncio.wait([impatient])
            daemon.gate.set()
        assert patient.result() is False
        assert daemon.closed == 0


async def test_a_model_is_warm_until_its_keep_alive_ends() -> None:
    async with pooling(Loading()) as (pool, clock):
        await pool.ensure_loaded("m")
        clock.advance(9_000_000_000)
        assert pool.is_warm("m", {})
        clock.advance(2_000_000_000)
        assert not pool.is_warm("m", {})
        pool.used("m", {}, -1)
        clock.advance(10**18)
        assert pool.is_warm("m", {})
        pool.forget()
        assert not pool.is_warm("m", {})


async def test_other_loading_options_are_another_load() -> None:
    daemon = Loading()
    async with pooling(daemon) as (pool, _):
        await pool.ensure_loaded("m", reloading={"num_ctx": 64})
        assert pool.is_warm("m", {"num_ctx": 64})
        assert not pool.is_warm("m", {"num_ctx": 128})
        await pool.ensure_loaded("m", reloading={"num_ctx": 128})
    assert [each["options"] for each in daemon.loads()] == [{"num_ctx": 64}, {"num_ctx": 128}]


async def test_a_load_that_fails_is_told_to_all_and_tried_again_by_the_next() -> None:
    daemon = Loading(loaded=CRASHED)
    async with pooling(daemon) as (pool, _):
        results = await asyncio.gather(
            *(pool.ensure_loaded("m") for _ in range(3)), return_exceptions=True
        )
        assert [type(each) for each in results] == [ModelLoadFailed] * 3
        daemon.loaded = LOADED
        assert await pool.ensure_loaded("m") is False
        assert await pool.ensure_loaded("m") is True


async def test_what_cannot_be_served_here_is_refused_before_a_load() -> None:
    missing = json_response({"error": "model 'm' not found"}, 404)
    remote = json_response({"remote_host": "https://example.com", "remote_model": "x"})
    for shown, error in ((missing, ModelNotFound), (remote, RemoteModelRefused)):
        daemon = Loading(shown=shown)
        async with pooling(daemon) as (pool, _):
            with pytest.raises(error):
                await pool.ensure_loaded("m")
            with pytest.raises(RemoteModelRefused):
                await pool.ensure_loaded("m:cloud")
            with pytest.raises(InvalidRequest):
                await pool.ensure_loaded("not a name")
        assert daemon.loads() == []


async def test_a_load_that_leads_elsewhere_is_refused_before_a_prompt() -> None:
    daemon = Loading(loaded=json_response({"done": True, "remote_host": "https://example.com"}))
    async with pooling(daemon) as (pool, _):
        with pytest.raises(RemoteModelRefused):
            await pool.ensure_loaded("m")
        assert not pool.is_warm("m", {})


async def test_a_load_has_a_limit() -> None:
    daemon = Loading()
    daemon.gate.clear()
    async with pooling(daemon, load_s=0.1) as (pool, _):
        with pytest.raises(ModelLoadFailed, match=r"within 0\.1 s"):
            await pool.ensure_loaded("m")
        daemon.gate.set()


async def test_what_a_model_can_do_is_a_list_of_words() -> None:
    for wrong in (1, "completion", [1]):
        async with pooling(Loading(shown=json_response({"capabilities": wrong}))) as (pool, _):
            with pytest.raises(ProtocolError):
                await pool.ensure_loaded("m")


async def test_an_embedding_model_is_loaded_by_an_embedding() -> None:
    daemon = Loading(shown=json_response({"capabilities": ["embedding"]}))
    async with pooling(daemon) as (pool, _):
        await pool.ensure_loaded("m")
        assert repr(pool) == "<ModelPool 1 resident, 0 busy, 0 loading, 0 MiB>"
    assert [each.path for each in daemon.requests] == [
        "/api/show",
        "/api/tags",
        "/api/ps",
        "/api/embed",
        "/api/ps",
    ]


async def test_a_model_that_somebody_else_loaded_is_warm_from_the_start() -> None:
    daemon = Loading()
    daemon.resident = [{"name": each} for each in ("other:latest", "not a name", "M:latest")]
    async with pooling(daemon) as (pool, _):
        assert await pool.ensure_loaded("m") is True
        assert await pool.ensure_loaded("n") is False


async def test_a_lease_keeps_a_model_busy_until_it_is_released() -> None:
    async with pooling(Loading()) as (pool, clock):
        request = generate_request("m", "hello", {}, "10s")
        lease = await pool.acquire(request)
        assert (lease.model, lease.warm) == ("m:latest", False)
        clock.advance(9_000_000_000)
        with lease:
            assert (await pool.acquire(request)).warm is True
        clock.advance(9_000_000_000)
        assert pool.is_warm("m", {}), "its time begins when it is released"
        lease.release()
