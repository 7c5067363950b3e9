"""Each process crashes in the middle of an answer: no core is dumped, and the canary is nowhere."""

from __future__ import annotations

import itertools
import os
import resource
import signal
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter, TokenStream
from ollama_adapter.config import Sandbox
from ollama_adapter.errors import AdapterError, StreamInterrupted
from tests import family
from tests.canary import (
    ENDLESS,
    PROMPT,
    Everything,
    assert_absent,
    search_files,
    search_processes,
)

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("machine")]

WATCHDOG_S = 60
ROLES = ("runner", "daemon", "keeper")
SIGNALS = (signal.SIGSEGV, signal.SIGABRT)


@pytest.fixture
def dumps_allowed() -> Iterator[None]:
    """What we start inherits a limit that forbids nothing."""
    soft, hard = resource.getrlimit(resource.RLIMIT_CORE)
    resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))


async def in_the_middle_of_an_answer(adapter: OllamaAdapter) -> TokenStream:
    """Asked again where the request has met the last of the one that crashed before."""
    while True:
        stream = adapter.generate_stream("tinydoc", PROMPT, format=ENDLESS, num_predict=50_000)
        try:
            await anext(stream)
            return stream
        except StreamInterrupted as error:
            assert error.tokens == 0


def assert_that_it_cannot_dump(process: psutil.Process) -> None:
    limits = Path(f"/proc/{process.pid}/limits").read_text()
    (line,) = (each for each in limits.splitlines() if each.startswith("Max core file size"))
    assert all(int(each) <= 1 for each in line.split()[4:6]), line
    assert int(Path(f"/proc/{process.pid}/coredump_filter").read_text(), 16) == 0


def cores_beside(process: psutil.Process) -> set[str]:
    """What the kernel would have written, were it to write there."""
    with os.scandir(f"/proc/{process.pid}/cwd") as entries:
        return {each.name for each in entries if each.name.startswith("core")}


@pytest.mark.usefixtures("dumps_allowed")
@pytest.mark.parametrize("sandbox", [Sandbox.ENFORCED, Sandbox.NONE])
async def test_whoever_crashes_in_the_middle_of_an_answer_leaves_no_trace_of_it(
    sandbox: Sandbox,
    machine: Path,
    log: Everything,
    scaled: Callable[[int], int],
    measured: Callable[..., None],
) -> None:
    places = [machine, Path(os.environ["TMPDIR"]), Path("/dev/shm")]
    settings = DaemonConfig(
        mode=DaemonMode.EMBEDDED, sandbox=sandbox, restart_base_s=0.01, stable_s=0.01
    )
    crashes = zip(ROLES * scaled(20), itertools.cycle(SIGNALS), strict=False)
    searched = 0
    async with OllamaAdapter(Config(daemon=settings)) as adapter:
        for role, fault in crashes:
            stream = await in_the_middle_of_an_answer(adapter)
            processes = family.family_of(psutil.Process())
            assert len(processes) >= 3
            for each in processes:
                assert_that_it_cannot_dump(each)
            searched += search_processes(processes)
            victim = family.find(psutil.Process(), role)
            assert victim is not None, [family.role_of(each) for each in processes]
            place = Path(f"/proc/{victim.pid}/cwd").readlink()
            before = cores_beside(victim)
            victim.send_signal(fault)
            with pytest.raises(AdapterError) as caught:
                async for _ in stream:
                    pass
            written = "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))
            assert_absent(written.encode(), f"the traceback after the {role} crashed")
            assert {each.name for each in place.glob("core*")} <= before
    searched += search_files(*places) + log.search()
    measured(f"canary found after crashes, sandbox {sandbox.value}", 0, "= 0", "places", searched)
