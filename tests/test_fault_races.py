"""Streams that are cut more than once, all at once, or at an awkward moment: they go on, or say that they do not."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import psutil
import pytest
from anyio.lowlevel import checkpoint

from ollama_adapter import Finish
from ollama_adapter.errors import StreamInterrupted
from ollama_adapter.testing import FaultKind
from tests.faulty import Case, Resume, Told, begin, judge, let_go, limits, read, rig
from tests.serving import text_of, until

pytestmark = pytest.mark.anyio

WATCHDOG_S = 60.0
ANY = Case(FaultKind.RST, "in_the_middle")


# More than one


@pytest.mark.parametrize("resume", [Resume.RERUN, Resume.TEXT])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("rst@2*1", "eof@8*1"),
        ("rst@6*1", "eof@4*1"),  # in a second run: before the old text has come again
        ("eof@0*1", "error_line@0*1"),
        ("error_line@6*1", "die@6=20ms*1"),
        ("no_done*1", "half_json*1"),
    ],
)
async def test_two_faults_in_a_row_cost_nothing(resume: Resume, first: str, second: str) -> None:
    case = replace(ANY, resume=resume)
    async with asyncio.timeout(WATCHDOG_S), rig(limits(resume)) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, case))).text
        daemon.faults = first
        tokens = begin(adapter, case)
        # The second is armed when the first has happened, so that it meets what goes on.
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(tokens))
            await daemon.until(lambda: daemon.struck)
            daemon.faults = second
        told = reading.result()
        judge(told, whole)
        assert told.error is None, told.error
        assert len(daemon.struck) == 1, "the second fault did not happen"
        assert told.tokens.statistics.seams


async def test_a_fault_that_never_ends_is_an_error_that_says_how_far_it_came() -> None:
    async with asyncio.timeout(WATCHDOG_S), rig(limits(Resume.RERUN)) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, ANY))).text
        daemon.faults = "rst@6"
        told = await read(begin(adapter, ANY))
        judge(told, whole)
        assert isinstance(told.error, StreamInterrupted)
        assert (told.error.tokens, len(daemon.struck)) == (6, 4)


@pytest.mark.parametrize("resume", [Resume.RERUN, Resume.TEXT])
async def test_one_dead_daemon_cuts_many_and_all_go_on(resume: Resume) -> None:
    cases = [replace(ANY, resume=resume, chat=each % 2 == 1) for each in range(8)]
    async with asyncio.timeout(WATCHDOG_S), rig(limits(resume)) as (daemon, (adapter,)):
        wholes = [
            (await read(begin(adapter, case, f"Of {n}"))).text for n, case in enumerate(cases)
        ]
        daemon.faults = "stall@6, slow=1ms"  # they wait for one another in the middle
        streams = [begin(adapter, case, f"Of {n}") for n, case in enumerate(cases)]
        async with asyncio.TaskGroup() as group:
            reading = [group.create_task(read(each)) for each in streams]
            await daemon.until(lambda: len(daemon.struck) >= len(cases) + 1)
            await until(lambda: all(each.statistics.tokens == 6 for each in streams))
            daemon.faults = ""
            await daemon.die()
            await until(lambda: not adapter.daemon.origin)  # everybody waits for another one
            await daemon.revive()
        for each, whole in zip(reading, wholes, strict=True):
            judge(each.result(), whole)
            assert each.result().error is None, each.result().error
            assert [seam.index for seam in each.result().tokens.statistics.seams] == [6]


async def test_a_daemon_that_comes_back_deaf_ends_within_the_limit() -> None:
    hurried = replace(limits(Resume.RERUN), resume_s=0.5)
    async with asyncio.timeout(WATCHDOG_S), rig(hurried) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, ANY))).text
        daemon.faults = "die@6*1"
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(begin(adapter, ANY)))
            await until(lambda: not daemon.alive)
            daemon.faults = "deaf"
            await daemon.revive()
        error = reading.result().error
        judge(reading.result(), whole)
        assert isinstance(error, StreamInterrupted)
        assert any("resume_s" in each for each in error.refusals)


# Races


async def test_a_daemon_that_dies_while_it_is_asked_for_the_last_token_changes_nothing() -> None:
    case = replace(ANY, resume=Resume.TEXT)
    async with asyncio.timeout(WATCHDOG_S), rig(limits(Resume.TEXT)) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, case))).text
        daemon.faults = "rst@6*1"
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(begin(adapter, case)))
            await daemon.until(lambda: daemon.struck)
            daemon.faults = "die@0=20ms*1"
        told = reading.result()
        assert not daemon.generations()[-2].request.json().get("stream", True), "it died elsewhere"
        judge(told, whole)
        assert told.error is None, told.error
        assert [each.index for each in told.tokens.statistics.seams] == [6]


async def test_a_look_that_takes_too_long_is_tried_again() -> None:
    limited = replace(limits(Resume.TEXT, FaultKind.STALL), resume_s=20.0)
    case = replace(ANY, resume=Resume.TEXT)
    async with asyncio.timeout(WATCHDOG_S), rig(limited) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, case))).text
        daemon.faults = "rst@6*1"
        async with asyncio.TaskGroup() as group:
            reading = group.create_task(read(begin(adapter, case)))
            await daemon.until(lambda: daemon.struck)
            daemon.faults = "stall@0*1"
        told = reading.result()
        assert daemon.struck
        judge(told, whole)
        assert told.error is None, told.error


@pytest.mark.parametrize("resume", [Resume.RERUN, Resume.TEXT])
async def test_a_reader_that_pauses_while_the_stream_goes_on_loses_nothing(resume: Resume) -> None:
    case = replace(ANY, resume=resume)
    narrow = replace(limits(resume), buffer_tokens=2)
    async with asyncio.timeout(WATCHDOG_S), rig(narrow) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, case))).text
        for fault in ("rst@6*1", "eof@6*1", "rst@2*1", "rst@1*1"):
            daemon.faults = fault
            tokens = begin(adapter, case)
            told = Told(tokens)
            async with tokens:
                told.events.append(await anext(tokens))
                await until(lambda: daemon.struck)
                for _ in range(20):  # it takes a token now and then, at whatever moment
                    await checkpoint()
                    if len(told.events) < 3 and tokens._session.channel:
                        told.events.append(await anext(tokens))
                told.events += [event async for event in tokens]
            judge(told, whole)


async def test_aborts_at_every_moment_of_going_on_end_quietly() -> None:
    case = replace(ANY, resume=Resume.TEXT)
    async with asyncio.timeout(WATCHDOG_S), rig(limits(Resume.TEXT)) as (daemon, (adapter,)):
        whole = (await read(begin(adapter, case))).text
        await until(lambda: not daemon.connections)
        files = psutil.Process().num_fds()
        for passes in range(0, 120, 3):
            daemon.faults = "rst@6*1"
            tokens = begin(adapter, case)
            events = [await anext(tokens) for _ in range(6)]
            for _ in range(passes):
                await checkpoint()
            await tokens.stop()
            assert [event async for event in tokens] == []
            assert tokens.statistics.finish in (Finish.ABORTED, Finish.STOP)
            assert whole.startswith(text_of(events))
            await let_go(daemon, files)
