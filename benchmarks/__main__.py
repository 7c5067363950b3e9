"""Measures CPU per token, ours beside others, and writes it down.

Every client runs in a process of its own, pinned to one core; the replay server has another. Rounds
are interleaved, so that what disturbs one client disturbs all. Reported are medians, and the median
of the ratios to the official client within a round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import report
from benchmarks.clients import CLIENTS, Sample, missing
from benchmarks.replay import NoCompiler, build, serve

ROOT: Final = Path(__file__).parent.parent
RESULTS: Final = Path(__file__).with_name("results")
LIMIT_S: Final = 120


@dataclass(frozen=True)
class Case:
    """What the server does, and for how long the client looks (0: one answer, to its end)."""

    name: str
    streams: int = 1
    rate: float = 0.0
    batch: int = 32
    logprobs: bool = False


CASES: Final = (
    Case("as fast as it goes, 32 tokens per write"),
    Case("as fast as it goes, 32 tokens per write, five top logprobs", logprobs=True),
    Case("as fast as it goes, 1 token per write", batch=1),
    Case("1 stream, 30 tokens/s", streams=1, rate=30.0),
    Case("10 streams, 30 tokens/s each", streams=10, rate=30.0),
    Case("100 streams, 30 tokens/s each", streams=100, rate=30.0),
)


def run_client(name: str, case: Case, port: int, core: int, tokens: int, seconds: float) -> Sample:
    """One client, once. Raises CalledProcessError, TimeoutExpired, ValueError."""
    paced = case.rate > 0
    asked = int((seconds + 10) * case.rate) if paced else tokens
    order = [name, port, case.streams, seconds if paced else 0, asked, int(case.logprobs)]
    environment = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    client = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.clients", *map(str, order)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    with client:
        os.sched_setaffinity(client.pid, {core})
        try:
            said, _ = client.communicate(timeout=LIMIT_S)
        except BaseException:
            client.kill()
            raise
    if client.returncode:
        raise subprocess.CalledProcessError(client.returncode, name)
    sample = Sample(**json.loads(said))
    if not sample.tokens:
        raise ValueError("no token came")
    return sample


def run_case(
    case: Case, program: Path, cores: tuple[int, int], options: argparse.Namespace
) -> report.Samples:
    """All clients, all rounds. A client that fails once is left out from there on."""
    samples: report.Samples = {name: [] for name in options.clients}
    client_core, server_core = cores
    with serve(
        program, server_core, batch=case.batch, rate=case.rate, logprobs=case.logprobs
    ) as port:
        for _ in range(options.rounds):
            for name in list(samples):
                try:
                    samples[name].append(
                        run_client(name, case, port, client_core, options.tokens, options.seconds)
                    )
                except (subprocess.SubprocessError, ValueError) as error:
                    print(f"{name} failed: {type(error).__name__}", file=sys.stderr)
                    del samples[name]
    return samples


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100_000, help="of an answer at full speed")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a paced measurement")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--client", default="", help="only clients with this in their name")
    parser.add_argument("--no-save", action="store_true", help="write no file")
    options = parser.parse_args(arguments)
    options.clients = []
    for name in (each for each in CLIENTS if options.client in each):
        if lacking := missing(name):
            print(f"skipped: {name} (not installed: {', '.join(lacking)})")
        else:
            options.clients.append(name)
    return options


def choose_cores() -> tuple[int, int]:
    """One for the client, another for the server."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("there is only one core: client and server share it, times are worth little")
    return cores[0], cores[-1]


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if not hasattr(os, "sched_setaffinity"):
        print("the benchmarks need Linux (epoll, pinned processes)", file=sys.stderr)
        return 1
    results: dict[str, report.Samples] = {}
    with tempfile.TemporaryDirectory() as directory:
        try:
            program = build(Path(directory))
        except NoCompiler as error:
            print(error, file=sys.stderr)
            return 1
        cores = choose_cores()
        for case in CASES:
            if options.case in case.name:
                results[case.name] = run_case(case, program, cores, options)
                print(report.table(case.name, results[case.name]), flush=True)
    if not options.no_save:
        path = RESULTS / f"{datetime.now(UTC):%Y-%m-%d}-{report.slug()}.json"
        try:
            path.write_text(report.as_json(results, options.rounds))
            print(f"written: {path.relative_to(ROOT)}")
        except OSError as error:
            print(f"not written: {error.strerror}", file=sys.stderr)
    complete = all(options.clients == list(samples) for samples in results.values())
    return 0 if complete else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
