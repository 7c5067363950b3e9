"""A forked command is what a started one is, and ends with whoever waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from ollama_adapter.testing import PretendOllama
from tests.cli.command import ForkServer, Machine, finish

pytestmark = pytest.mark.anyio


@pytest.fixture
def forking(machine: Machine) -> Iterator[Machine]:
    """With a server in `make soak`, too."""
    with ForkServer() as machine.server:
        yield machine


@pytest.mark.parametrize(
    "arguments",
    [["--version"], ["run", "--nonsense"], ["run", "m", b"caf\xe9"], ["run", "-"], ["models"]],
    ids=str,
)
async def test_a_fork_says_what_a_start_says(forking: Machine, arguments: list[str]) -> None:
    async with PretendOllama() as daemon:
        forking.port = daemon.port
        started = await finish(await forking.start(*arguments), b"\xff")
        assert await forking.run(*arguments, stdin=b"\xff") == started


async def test_a_fork_that_nobody_waits_for_is_killed(forking: Machine) -> None:
    async with PretendOllama(faults="stall@1") as daemon:
        forking.port = daemon.port
        waiting = asyncio.create_task(forking.run("run", "pretend", "hi"))
        await daemon.until(lambda: daemon.struck)
        waiting.cancel()
        await asyncio.wait([waiting])
        await daemon.until(lambda: daemon.dropped == 1)
    assert waiting.cancelled()
