"""Measures us beside others, and writes it down: `python -m benchmarks`. See docs/performance.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks import costs, frames, report
from benchmarks.cases import CASES, Bench, Case, Numbers, Samples, run
from benchmarks.clients import CLIENTS, C, missing
from benchmarks.plots import bars
from benchmarks.replay import NoCompiler, build

RESULTS: Final = Path(__file__).with_name("results")
ALONE: Final[dict[str, Callable[[Bench], dict[str, Numbers]]]] = {
    "lateness of 60 Hz frames": frames.run_all,
    "what the parts cost": costs.run_all,
}
"""What is ours alone, and compared with nobody's."""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=100_000, help="of an answer at full speed")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a paced measurement")
    parser.add_argument("--case", default="", help="only cases with this in their name")
    parser.add_argument("--client", default="", help="only clients with this in their name")
    parser.add_argument(
        "--ahead", action="store_true", help="ahead of other work on this machine (root only)"
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="where the results go")
    parser.add_argument("--no-save", action="store_true", help="write no files")
    return parser.parse_args(arguments)


def choose_clients(wanted: str) -> tuple[str, ...]:
    """Those that are installed, ours first, the one in C last; the others are named."""
    chosen = []
    for name in (each for each in CLIENTS if wanted in each):
        if lacking := missing(name):
            print(f"skipped: {name} (not installed: {', '.join(lacking)})")
        else:
            chosen.append(name)
    return (*chosen, C) if wanted in C else tuple(chosen)


def choose_cores() -> tuple[int, int]:
    """One for the client, another for the server."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) == 1:
        print("there is only one core: client and server share it, times are worth little")
    return cores[0], cores[-1]


def prepare(options: argparse.Namespace, directory: Path) -> Bench:
    """Programs, cores, clients. Raises NoCompiler."""
    client_core, server_core = choose_cores()
    return Bench(
        build("replay", directory),
        build("client", directory),
        client_core,
        server_core,
        options.rounds,
        options.tokens,
        options.seconds,
        options.ahead,
        choose_clients(options.client),
    )


def measure(bench: Bench, wanted: str) -> tuple[dict[str, Any], dict[str, Samples], list[str]]:
    """Everything that is wanted, told as it comes: for the file, for the plots, and what failed."""
    document: dict[str, Any] = {}
    compared: dict[str, Samples] = {}
    failures: list[str] = []
    for case in CASES:
        if wanted in case.name:
            samples, failed = run(case, bench)
            print(report.table(case, samples), flush=True)
            failures += [f"{case.name}: {each}" for each in failed]
            compared[case.name], document[case.name] = samples, report.case_json(case, samples)
    for title, work in ALONE.items():
        if wanted in title:
            try:
                rows = work(bench)
            except (subprocess.SubprocessError, ValueError) as error:
                failures.append(f"{title}: {type(error).__name__}")
                continue
            print(report.plain_table(title, rows), flush=True)
            document[title] = rows
    return document, compared, failures


def plot(compared: Mapping[str, Samples]) -> dict[str, str]:
    """SVG documents by their names."""

    def chosen(number: str, cases: list[Case]) -> dict[str, dict[str, float]]:
        found = {each.name: compared[each.name] for each in cases if each.name in compared}
        return {
            case: {
                name: report.medians(rounds)[number] for name, rounds in samples.items() if rounds
            }
            for case, samples in found.items()
        }

    kinds = {
        kind: [each for each in CASES if each.kind == kind]
        for kind in ("speed", "flow", "first", "abort")
    }
    drawn = {
        "cpu": ("CPU time per token", "µs", chosen("cpu_us", [*kinds["speed"], *kinds["flow"]])),
        "latency": (
            "From the server's send to the consumer, p50",
            "µs",
            chosen("p50_us", kinds["flow"]),
        ),
        "latency-p99": (
            "From the server's send to the consumer, p99",
            "µs",
            chosen("p99_us", kinds["flow"]),
        ),
        "first-token": (
            "Connected client: time to the first token",
            "µs",
            chosen("warm_us", kinds["first"]),
        ),
        "fresh-client": (
            "New client: time to the first token",
            "µs",
            chosen("fresh_us", kinds["first"]),
        ),
    }
    return {name: bars(*what) for name, what in drawn.items() if what[2]}


def save(document: Mapping[str, Any], compared: Mapping[str, Samples], out: Path) -> None:
    """Raises OSError."""
    stem = f"{datetime.now(UTC):%Y-%m-%d}-{report.slug()}"
    files = {f"{stem}.json": report.as_json(document)}
    files |= {f"{stem}-{name}.svg": drawn for name, drawn in plot(compared).items()}
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, "utf-8")
        print(f"written: {name}")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if not hasattr(os, "sched_setaffinity"):
        print("the benchmarks need Linux (epoll, pinned processes)", file=sys.stderr)
        return 1
    _allow_files()
    with tempfile.TemporaryDirectory() as directory:
        try:
            bench = prepare(options, Path(directory))
        except NoCompiler as error:
            print(error, file=sys.stderr)
            return 1
        document, compared, failures = measure(bench, options.case)
    for each in failures:
        print(f"failed: {each}", file=sys.stderr)
    if not options.no_save:
        how = {"rounds": options.rounds, "ahead_of_other_work": options.ahead, "cases": document}
        try:
            save(how, compared, options.out)
        except OSError as error:
            print(f"not written: {error.strerror}", file=sys.stderr)
            return 1
    return 1 if failures else 0


def _allow_files() -> None:
    """A thousand streams are a thousand sockets on either side."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
