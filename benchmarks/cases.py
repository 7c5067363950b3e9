"""What is measured beside others: each case is one way in which a server sends, and one kind of measuring.

Every client runs in a process of its own, pinned to one core; the server has another. Rounds are interleaved,
so that what disturbs one client disturbs all.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.clients import ALONE, CLIENTS, OFFICIAL, OURS, C
from benchmarks.measuring import percentiles
from benchmarks.replay import prefer, serve

ROOT: Final = Path(__file__).parent.parent
LIMIT_S: Final = 120
RATE: Final = 30.0
OURS_BARE: Final = f"{OURS}, no frames"
IMPORTS: Final = {
    OURS: "from ollama_adapter import OllamaAdapter",
    OFFICIAL: "import ollama",
    "httpx + orjson": "import asyncio, httpx, orjson",
    "aiohttp + msgspec": "import aiohttp, msgspec",
}

Numbers = dict[str, float]
Samples = dict[str, list[Numbers]]
"""A client's rounds."""


@dataclass(frozen=True)
class Bench:
    """How this run measures: programs, cores, and how much of everything."""

    server: Path
    client: Path
    client_core: int
    server_core: int
    rounds: int
    tokens: int
    seconds: float
    ahead: bool
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """`numbers` are the order of `kind` (benchmarks/measuring.py); `ratio` names the number to compare by."""

    name: str
    kind: str
    numbers: Callable[[Bench], tuple[float, ...]]
    ratio: str
    server: tuple[str, ...] = ()
    logprobs: bool = False
    in_c: bool = True
    clients: tuple[str, ...] = tuple(CLIENTS)


def _speed(name: str, *server: str, logprobs: bool = False) -> Case:
    return Case(
        f"as fast as it goes, {name}",
        "speed",
        lambda b: (b.tokens,),
        "cpu_us",
        server,
        logprobs,
        clients=tuple(each for each in CLIENTS if each != ALONE),  # it loses what two reads share
    )


def _flow(streams: int) -> Case:
    many = "stream" if streams == 1 else "streams"
    return Case(
        f"{streams:,} {many}, 30 tokens/s each",
        "flow",
        lambda b: (streams, b.seconds, RATE),
        "cpu_us",
        ("--rate", str(RATE), "--timed"),
    )


CASES: Final = (
    _speed("32 tokens per write", "--batch", "32"),
    _speed("32 tokens per write, five top logprobs", "--batch", "32", logprobs=True),
    _speed("1 token per write", "--batch", "1"),
    *map(_flow, (1, 10, 100, 1000)),
    Case("time to the first token", "first", lambda b: (max(8, b.tokens // 500),), "warm_us"),
    Case("a fresh process to its first token", "process", lambda _: (), "process_ms", in_c=False),
    Case(
        "import, over bare Python",
        "import",
        lambda _: (),
        "cpu_ms",
        in_c=False,
        clients=tuple(IMPORTS),
    ),
    Case(
        "memory per stream",
        "memory",
        lambda b: (max(20, min(500, b.tokens // 200)),),
        "stream_kb",
        ("--rate", str(RATE), "--timed"),
        in_c=False,
    ),
    *(
        Case(
            f"abort: from the call until the server sees the close, {words}",
            "abort",
            lambda b, streams=streams: (streams, max(5, b.tokens // 1000)),
            "p50_us",
            ("--rate", str(RATE), "--timed", "--log"),
            in_c=False,
        )
        # The aborted one is the hundredth: the official client has no more connections than that.
        for words, streams in (("idle", 0), ("100 streams flowing", 99))
    ),
)


def run(case: Case, bench: Bench) -> tuple[Samples, list[str]]:
    """All clients, all rounds. One that fails is left out from there on, and named with its error."""
    names = [each for each in bench.clients if each in case.clients or (each == C and case.in_c)]
    samples: Samples = {name: [] for name in names}
    failures = []
    for _ in range(bench.rounds):
        for name in list(samples):
            try:
                samples[name].append(_measure(case, name, bench))
            except (subprocess.SubprocessError, ValueError) as error:
                failures.append(f"{name}: {type(error).__name__}")
                del samples[name]
    return samples, failures


def _measure(case: Case, name: str, bench: Bench) -> Numbers:
    """One client, once. Raises CalledProcessError, TimeoutExpired, ValueError."""
    if case.kind == "import":
        return _import(IMPORTS[name], bench)
    server = (*case.server, "--logprobs") if case.logprobs else case.server
    with serve(bench.server, bench.server_core, server, ahead=bench.ahead) as replay:
        numbers = case.numbers(bench)
        if name == C:
            argv = [str(bench.client), *_in_c(case, replay.port, numbers)]
        else:
            order = [case.kind, name, replay.port, int(case.logprobs), *numbers]
            argv = [sys.executable, "-m", "benchmarks.measuring", *map(str, order)]
        start = time.monotonic_ns()
        found = _run(argv, bench)
        if case.kind == "process":
            return {"process_ms": (found["first_ns"] - start) / 1e6}
        if case.kind == "abort":
            return _abort_latency(found["called_ns"], replay.closings())
    return found


def _in_c(case: Case, port: int, numbers: tuple[float, ...]) -> list[str]:
    if case.kind == "first":
        return ["first", str(port), str(int(numbers[0]))]
    tokens = int(numbers[0]) if case.kind == "speed" else int((numbers[1] + 30) * numbers[2])
    streams, seconds = (1, 0.0) if case.kind == "speed" else numbers[:2]
    order = [port, int(streams), seconds, tokens, int(case.logprobs)]
    return ["tokens", *map(str, order)]


def _run(argv: list[str], bench: Bench) -> Any:
    with child(argv, bench) as process:
        said, _ = process.communicate(timeout=LIMIT_S)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "a client")
    return json.loads(said)


@contextmanager
def child(argv: list[str], bench: Bench) -> Iterator[subprocess.Popen[str]]:
    """A process on the client's core, without any proxy; killed where this is left by an error."""
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    process = subprocess.Popen(argv, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    with process:
        try:
            prefer(process.pid, bench.client_core, ahead=bench.ahead)
            yield process
        except BaseException:
            process.kill()
            raise


def _abort_latency(called_ns: Mapping[str, int], closings: Mapping[int, int]) -> Numbers:
    seen = [
        closings[int(asked)] - at_ns for asked, at_ns in called_ns.items() if int(asked) in closings
    ]
    if not seen:
        raise ValueError("the server saw no close")
    return percentiles(seen, p50_us=0.5, p99_us=0.99)


def _import(statement: str, bench: Bench) -> Numbers:
    """The best of three, beyond bare Python: CPU time, and memory that is nobody else's."""
    cpu_s, kilobytes = zip(*(_cost(statement, bench) for _ in range(3)), strict=True)
    bare_s, bare_kb = zip(*(_cost("pass", bench) for _ in range(3)), strict=True)
    return {
        "cpu_ms": (min(cpu_s) - min(bare_s)) * 1e3,
        "memory_mb": (min(kilobytes) - min(bare_kb)) / 1024,
    }


def _cost(statement: str, bench: Bench) -> tuple[float, int]:
    argv = [sys.executable, "-c", f"{statement}; print(open('/proc/self/smaps_rollup').read())"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        prefer(process.pid, bench.client_core, ahead=bench.ahead)
        assert process.stdout is not None
        held = [line.split() for line in process.stdout if line.startswith("Private_")]
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, statement)
    return used.ru_utime + used.ru_stime, sum(int(each[1]) for each in held)
