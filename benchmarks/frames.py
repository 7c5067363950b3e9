"""How late frames are; `python -m benchmarks.frames PORT STREAMS SECONDS REALTIME` is one measurement.

A tick is due at an instant of a fixed grid; a frame is late by what passed from there until it was made. With
STREAMS 0 nothing is active, and what is counted is how often the process woke up.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Final

from benchmarks.cases import LIMIT_S, RATE, Bench, Numbers, child
from benchmarks.clients import MODEL, PROMPT
from benchmarks.measuring import SETTLE_S, percentiles
from benchmarks.replay import serve

FIFO_PRIORITY: Final = 10
TOKENS: Final = 1_000_000
CONDITIONS: Final[dict[str, tuple[int, bool, bool]]] = {  # streams, a hog on every core, real time
    "nothing active": (0, False, False),
    "1 stream": (1, False, False),
    "100 streams in the same loop": (100, False, False),
    "100 streams, a CPU hog on every core": (100, True, False),
    "the same, real-time scheduling": (100, True, True),
}


def run_all(bench: Bench) -> dict[str, Numbers]:
    """Every condition that is allowed here; one that is not has no numbers."""
    return {name: _run(bench, *condition) for name, condition in CONDITIONS.items()}


def _run(bench: Bench, streams: int, hogged: bool, realtime: bool) -> Numbers:
    with ExitStack() as stack:
        options = ("--rate", str(RATE))
        replay = stack.enter_context(
            serve(bench.server, bench.server_core, options, ahead=bench.ahead)
        )
        if hogged:
            stack.enter_context(_hogs())
        order = [replay.port, streams, bench.seconds, int(realtime)]
        argv = [sys.executable, "-m", "benchmarks.frames", *map(str, order)]
        with child(argv, bench) as process:
            said, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "frames")
    numbers: Numbers = json.loads(said)
    return numbers


@contextmanager
def _hogs() -> Iterator[None]:
    """A process per core that computes, and never waits."""
    hogs = []
    try:
        for core in os.sched_getaffinity(0):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            hogs.append(hog)
            os.sched_setaffinity(hog.pid, {core})
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


async def measure(port: int, streams: int, seconds: float) -> Numbers:
    from ollama_adapter.config import Config, DaemonConfig, DaemonMode
    from ollama_adapter.events import Frame
    from ollama_adapter.orchestrator import Orchestrator

    config = Config(daemon=DaemonConfig(port=port, mode=DaemonMode.ADOPT))
    late: list[int] = []  # frames that stay would occupy Python's collector, as no display does
    made: list[int] = []
    missed: list[int] = []

    def show(frame: Frame) -> None:
        late.append(frame.monotonic_ns - orchestrator.decipher.instant_ns(frame.frame_id))
        made.append(frame.processing_ns)
        missed.append(frame.skipped)

    async def follow(adapter: Any) -> None:
        async for _ in adapter.generate_stream(MODEL, PROMPT, num_predict=TOKENS):
            pass

    async with Orchestrator(config, on_frame=show) as orchestrator:
        readers = [asyncio.create_task(follow(orchestrator.adapter)) for _ in range(streams)]
        await asyncio.sleep(SETTLE_S)
        for each in (late, made, missed):
            each.clear()
        woken = _wake_ups()
        await asyncio.sleep(seconds)
        woken = _wake_ups() - woken - 1  # by the end of this very sleep
        seen = len(late)
        for reader in readers:
            reader.cancel()
        await asyncio.gather(*readers, return_exceptions=True)
    if not streams:
        return {"frames_n": seen, "wake_ups_n": woken}
    return {
        **percentiles(late[:seen], late_p50_us=0.5, late_p99_us=0.99, late_max_us=1.0),
        "missed_n": sum(missed[:seen]),
        "frames_n": seen,
        **percentiles(made[:seen], made_p50_us=0.5),
    }


def _wake_ups() -> int:
    """How often this process has waited and been woken."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return sum(int(line.split()[1]) for line in lines if line.startswith("voluntary"))


def main(arguments: list[str]) -> None:
    port, streams, seconds, realtime = arguments
    if realtime == "1":
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(FIFO_PRIORITY))
        except PermissionError:
            print("{}")
            return
    print(json.dumps(asyncio.run(measure(int(port), int(streams), float(seconds)))))


if __name__ == "__main__":
    main(sys.argv[1:])
