"""What the parts cost: `python -m benchmarks.costs TIMES` measures, in a process of its own.

The parts of a token are measured on reads of 32, as they come when parsing is what holds things up, and on
reads of one, as they come from a model. Their sum is less than a token costs: the kernel's share, the event
loop's and the reader's are not among them, and caches are warm.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Final

from benchmarks.cases import ROOT, Bench, Numbers, child
from benchmarks.clients import PROMPT

KINDS: Final = (  # of reads: how many tokens, and whether with candidates
    ("per token of 32", 32, False),
    ("per token of 32, five top logprobs", 32, True),
    ("a token alone", 1, False),
)
SESSIONS: Final = 100
MS: Final = 1_000_000
RUNS: Final = 5
_CANDIDATE: Final = b'{"token":" the","logprob":-%.16g,"bytes":[32,116,104,101]}'
_HEAD: Final = (
    b'{"model":"replay","created_at":"2026-01-01T00:12:34.123456789Z","response":" the",'
    b'"done":false'
)


def run_all(bench: Bench) -> dict[str, Numbers]:
    """The parts, the pool and memory, a spawn with and without its jail, a whole process."""
    argv = [sys.executable, "-m", "benchmarks.costs", str(max(3, bench.tokens // 1000))]
    with child(argv, bench) as process:
        said, _ = process.communicate()
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, "costs")
    rows: dict[str, Numbers] = json.loads(said)
    runs = RUNS if bench.tokens >= 10_000 else 1
    rows["`run` on the embedded daemon: process start to first token"] = _first_of_run(runs)
    jailed, bare = _ready(runs, "enforced"), _ready(runs, "none")
    rows["embedded daemon spawned and ready"] = {"cost_ms": jailed}
    rows["the same without a jail"] = {"cost_ms": bare}
    return rows


def line(logprobs: bool) -> bytes:
    """A token as Ollama writes it."""
    if not logprobs:
        return _HEAD + b"}\n"
    best = b",".join(_CANDIDATE % (0.1234567890123456 + n * 0.7) for n in range(5))
    return (
        _HEAD + b',"logprobs":[' + _CANDIDATE[:-1] % 0.5 + b',"top_logprobs":[' + best + b"]}]}\n"
    )


def cheapest_us(work: Callable[[], object], times: int) -> float:
    """The best of many, for what comes between makes it only longer."""
    best = float("inf")
    for _ in range(times):
        start = time.perf_counter_ns()
        work()
        best = min(best, time.perf_counter_ns() - start)
    return best / 1e3


def token_parts(read: int, logprobs: bool, times: int) -> dict[str, float]:
    """Microseconds per token, of `read` at once, of each step between the socket and the reader."""
    import httptools

    from ollama_adapter.config import StreamConfig
    from ollama_adapter.core.energy import EUMapper, profile_for
    from ollama_adapter.core.frames import FrameComposer
    from ollama_adapter.core.generation import Generation
    from ollama_adapter.core.records import GenerateRecord, RecordDecoder
    from ollama_adapter.core.transcript import Transcript
    from ollama_adapter.events import Statistics, TokenEvent
    from ollama_adapter.memory import Memory
    from ollama_adapter.system.channel import Channel
    from ollama_adapter.system.clock import SystemClock

    data, now = line(logprobs) * read, iter(range(0, 1 << 62, 10 * MS))
    mapper = EUMapper(profile_for())
    generation = Generation(Statistics("s", "m", served_by="m"), mapper, 0)
    decoder, composer = RecordDecoder(GenerateRecord), FrameComposer()
    records = decoder.feed(data)
    composer.open("s", mapper, 0)
    transcript, channel = Transcript(), Channel[TokenEvent](1 << 20, 1 << 30)
    memory, parser = Memory(StreamConfig(), SystemClock()), httptools.HttpResponseParser(object())
    parser.feed_data(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    chunk = b"%x\r\n%s\r\n" % (len(data), data)

    def keep() -> None:
        draft = memory.draft(private=False)
        draft.add(events)
        draft.drop()

    def generate() -> list[TokenEvent]:
        return generation.receive(records, next(now))

    def pass_on() -> None:
        channel.put_all(events, sum([len(each.token) for each in events]))
        channel.flush()
        while channel.get_nowait() is not None:
            pass

    events = generate()
    best = [each.logprobs for each in events]
    steps: dict[str, Callable[[], object]] = {
        "HTTP": lambda: parser.feed_data(chunk),
        "bytes to records": lambda: decoder.feed(data),
        "E(t) alone": lambda: mapper.tokens(next(now), best),
        "records to events, E(t) among it": generate,
        "counted for the next frame": lambda: composer.ingest_read(events),
        "transcript": lambda: transcript.add(events),
        "kept for the time without a daemon": keep,
        "channel, in and out": pass_on,
    }
    return {name: cheapest_us(step, times) / read for name, step in steps.items()}


def frame_us(times: int) -> float:
    """A frame of a hundred sessions, half of which have a new token."""
    from ollama_adapter.core.energy import EUMapper, profile_for
    from ollama_adapter.core.frames import FrameComposer
    from ollama_adapter.events import TokenEvent

    composer = FrameComposer()
    mappers = {f"session {n}": EUMapper(profile_for()) for n in range(SESSIONS)}
    for name, mapper in mappers.items():
        composer.open(name, mapper, 0)
    spent = []
    for tick in range(max(times, 20)):
        now_ns = tick * 1000 * MS // 60
        for name, mapper in list(mappers.items())[tick % 2 :: 2]:
            energy = mapper.token(now_ns, [-0.1])
            event = TokenEvent("", 0, 0, name, "m", energy=energy, index=tick, arrival_ns=now_ns)
            composer.ingest(event)
        start = time.perf_counter_ns()
        composer.compose(tick, now_ns, 0)
        spent.append(time.perf_counter_ns() - start)
    return min(spent[10:]) / 1e3


def cache_us(times: int) -> tuple[float, float]:
    """An answer of 256 tokens in memory: to find it, and to find that there is none."""
    from ollama_adapter.core.cache import SECRET_BYTES, AnswerCache, pack
    from ollama_adapter.events import Finish, Statistics, TokenEvent

    cache = AnswerCache(1 << 24, 3600.0, bytes(SECRET_BYTES))
    body = b'{"model":"m","prompt":"Say something.","options":{"seed":1,"temperature":0}}'
    events = [TokenEvent(" the", 0, 0, "s", "m", index=n) for n in range(256)]
    key = cache.key("digest", "/api/generate", body)
    part = pack(events)
    assert part is not None
    cache.put(key, [part], Statistics("s", "m", finish=Finish.STOP), 0)

    def hit() -> None:
        assert cache.get(cache.key("digest", "/api/generate", body), 1) is not None

    return cheapest_us(hit, times), cheapest_us(lambda: cache.get(b"no", 1), times)


def plan_us(times: int) -> float:
    """What loading a model does to eight others, three of which have to go."""
    from ollama_adapter.config import Tier
    from ollama_adapter.core.footprint import Need
    from ollama_adapter.core.planning import Resident, Rules, plan_load
    from ollama_adapter.core.tiers import TIERS
    from ollama_adapter.events import Footprint

    gib = 1 << 30
    residents = [Resident(f"m{n}", Footprint(ram=2 * gib), last_used_ns=n) for n in range(8)]
    need, limits = Need(4096, 5 * gib, gib // 2, gib // 2), TIERS[Tier.MID]
    assert len(plan_load("new", need, residents, limits, Rules(1 << 40)).evict) == 3
    return cheapest_us(lambda: plan_load("new", need, residents, limits, Rules(1 << 40)), times)


def _first_of_run(runs: int) -> Numbers:
    """From the start of the command to its first byte; what of that its first token took in the daemon."""
    totals, theirs = [], []
    for _ in range(runs):
        argv = [
            sys.executable,
            "-m",
            "ollama_adapter",
            "run",
            "--json",
            "--num-predict",
            "1",
            PROMPT,
        ]
        start = time.monotonic_ns()
        with subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.PIPE, env=_embedded_only()
        ) as process:
            assert process.stdout is not None
            process.stdout.readline()
            totals.append((time.monotonic_ns() - start) / 1e6)
            account = json.loads(process.stdout.read().splitlines()[-1])
        theirs.append(account["total_duration_ns"] / 1e6)
    return {"cost_ms": median(totals), "of_it_inference_ms": median(theirs)}


def _ready(runs: int, sandbox: str) -> float:
    """Milliseconds until a spawned daemon answers."""
    code = (
        "import asyncio, time\n"
        "from ollama_adapter import Config, DaemonConfig, DaemonMode, OllamaAdapter\n"
        "async def main():\n"
        f"    daemon = DaemonConfig(mode=DaemonMode.EMBEDDED, sandbox={sandbox!r})\n"
        "    start = time.monotonic_ns()\n"
        "    async with OllamaAdapter(Config(daemon=daemon)):\n"
        "        print(time.monotonic_ns() - start)\n"
        "asyncio.run(main())\n"
    )
    argv = [sys.executable, "-c", code]
    spent = [subprocess.check_output(argv, cwd=ROOT, env=_embedded_only()) for _ in range(runs)]
    return median(int(each) / 1e6 for each in spent)


def _embedded_only() -> dict[str, str]:
    """No settings of whoever measures, and no models of theirs."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("OLLAMA")}
    return {**kept, "OLLAMA_ADAPTER_DAEMON_MODE": "embedded", "OLLAMA_ADAPTER_CONFIG": os.devnull}


def main(arguments: list[str]) -> None:
    times = int(arguments[0])
    rows: dict[str, Numbers] = {}
    for words, read, logprobs in KINDS:
        for name, cost in token_parts(read, logprobs, times * 10).items():
            rows[f"{words}: {name}"] = {"cost_us": cost}
    rows[f"a frame of {SESSIONS} sessions"] = {"cost_us": frame_us(times * 10)}
    hit, miss = cache_us(times * 10)
    rows["a decision of the pool: eight models in memory, three go"] = {"cost_us": plan_us(times)}
    rows["an answer of 256 tokens found in memory"] = {"cost_us": hit}
    rows["an answer not found in memory"] = {"cost_us": miss}
    print(json.dumps(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
