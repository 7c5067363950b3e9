"""Every fault, wherever it can strike: the answer is whole, or an error says that it is not, within its limit.

`make test` meets each fault at each place once, and the rest in turns; `make soak` all of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterable
from dataclasses import replace

import psutil
import pytest

from ollama_adapter import OllamaAdapter, PoolConfig
from ollama_adapter.errors import (
    AdapterError,
    ConnectionLost,
    DaemonError,
    ModelLoadFailed,
    ModelNotFound,
    ProtocolError,
    ReadTimeout,
    RemoteModelRefused,
    ResponseError,
    ServerBusy,
    StreamInterrupted,
)
from ollama_adapter.testing import (
    FaultKind,
    Piece,
    ScriptedDaemon,
    ScriptedRequest,
    answer,
    json_response,
    response,
    stream,
)
from tests.faulty import (
    PROMPT,
    Case,
    Resume,
    all_cases,
    begin,
    judge,
    judge_case,
    let_go,
    limits,
    read,
    rig,
    spread,
)
from tests.serving import config_for, until

pytestmark = pytest.mark.anyio

WATCHDOG_S = 60.0
ANY = Case(FaultKind.RST, "in_the_middle")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" in metafunc.fixturenames:
        cases = all_cases() if metafunc.config.getoption("--soak") else spread()
        metafunc.parametrize("case", cases, ids=str)


async def test_a_fault_costs_nothing_or_is_told(case: Case) -> None:
    async with asyncio.timeout(WATCHDOG_S), rig(limits(case.resume, case.kind)) as made:
        daemon, (adapter,) = made
        whole = (await read(begin(adapter, case))).text
        await until(lambda: not daemon.connections)
        files = psutil.Process().num_fds()
        daemon.faults = case.fault
        told = await read(begin(adapter, case))
        assert len(daemon.struck) == 1, "the fault did not happen"
        judge_case(told, whole, case)
        await until(lambda: daemon.alive)
        await let_go(daemon, files)


# Before the answer begins

SLOW = ("cold_load=50ms", "prompt_eval=50ms", "slow=5ms", "stall@3=50ms")
REFUSED: dict[str, type[AdapterError]] = {
    "load_fail": ModelLoadFailed,
    "cloud": RemoteModelRefused,
    "503": ServerBusy,
    "429": ResponseError,
    "404": ModelNotFound,
    "500": StreamInterrupted,  # a runner that died, and dies again each time
}
SILENT = ("cold_load=1h", "prompt_eval=1h", "slow=1h", "deaf")


@pytest.mark.parametrize(
    ("fault", "chat"),
    [(fault, chat) for fault in (*SLOW, *REFUSED, *SILENT) for chat in (False, True)][:-1],
)
async def test_before_the_first_token_it_waits_or_says_what_was_refused(
    fault: str, chat: bool
) -> None:
    case = Case(FaultKind.STALL, "before_the_first", chat)
    short = FaultKind.STALL if fault in SILENT else None
    async with asyncio.timeout(WATCHDOG_S), rig(limits(Resume.RERUN, short)) as made:
        daemon, (adapter,) = made
        whole = (await read(begin(adapter, case))).text
        await until(lambda: not daemon.connections)
        files = psutil.Process().num_fds()
        daemon.faults = fault
        told = await read(begin(adapter, case))
        assert daemon.struck
        judge(told, whole)
        if fault in SLOW:
            assert told.error is None
        else:
            assert isinstance(told.error, REFUSED.get(fault, ReadTimeout))
            assert not told.events
        daemon.faults = ""
        await let_go(daemon, files)


class HalfLoad(ScriptedDaemon):
    """Answers the first `bad` requests for a load with `says`, and prompts with one word."""

    def __init__(self, says: list[Piece], bad: int) -> None:
        super().__init__(lambda _: [stream(answer(["one"]))])
        self._says = says
        self.left = bad

    def _pieces(self, request: ScriptedRequest) -> Iterable[Piece]:
        load = request.path == "/api/generate" and not request.json().get("prompt")
        if load and self.left:
            self.left -= 1
            return self._says
        return super()._pieces(request)


LOADED = json_response({"model": "m", "response": "", "done": True, "done_reason": "load"})
LOADS: dict[str, tuple[list[Piece], type[AdapterError]]] = {
    "half_a_head": ([LOADED[:20]], ConnectionLost),
    "half_a_body": ([LOADED[:-10]], ConnectionLost),
    "reset_in_the_body": ([LOADED[:-10], None], ConnectionLost),
    "reset_at_once": ([None], ConnectionLost),
    "nothing": ([b""], ConnectionLost),
    "no_json": ([response(b'{"model":"m","resp')], ProtocolError),
    "no_http": ([b"hello\r\n\r\n"], ProtocolError),
    "refused": ([json_response({"error": "server busy"}, 503)], ServerBusy),
    "silence": ([asyncio.Event()], ModelLoadFailed),
}


@pytest.mark.parametrize("how", LOADS)
async def test_a_load_that_is_cut_is_tried_once_more_and_then_told(how: str) -> None:
    says, kind = LOADS[how]
    async with asyncio.timeout(WATCHDOG_S), HalfLoad(says, 100) as daemon:
        config = replace(config_for(daemon), pool=PoolConfig(load_s=0.2))
        async with OllamaAdapter(config) as adapter:
            told = await read(adapter.generate_stream("m", PROMPT))
            assert isinstance(told.error, kind), told.error
            assert not daemon.generations() and not told.events
            judge(told, "one")
            daemon.left = 1 if kind is ConnectionLost else 0
            assert (await read(adapter.generate_stream("m", PROMPT))).text == "one"


async def test_a_port_that_takes_no_connection_is_told_within_its_limit() -> None:
    impatient = replace(limits(Resume.RERUN), connect_s=0.2)
    async with asyncio.timeout(WATCHDOG_S), rig(impatient) as (daemon, (adapter,)):
        await read(begin(adapter, ANY))
        await daemon.die()
        with contextlib.ExitStack() as stack:
            deaf = stack.enter_context(contextlib.closing(socket.socket()))
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            deaf.bind(("127.0.0.1", daemon.port))
            deaf.listen(0)
            for _ in range(4):  # they fill its queue
                knocking = stack.enter_context(contextlib.closing(socket.socket()))
                knocking.setblocking(False)
                knocking.connect_ex(deaf.getsockname())
            told = await read(begin(adapter, ANY))
        assert isinstance(told.error, (ReadTimeout, DaemonError))
        assert not told.events


async def test_a_port_that_nobody_listens_on_is_told() -> None:
    async with asyncio.timeout(WATCHDOG_S), rig(limits(Resume.RERUN)) as (daemon, (adapter,)):
        await daemon.die()
        told = await read(begin(adapter, ANY))
        assert isinstance(told.error, DaemonError)
        await daemon.revive()
        assert (await read(begin(adapter, ANY))).error is None
