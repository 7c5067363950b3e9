"""What is measured of one client; it runs in a process of its own, which is this module.

    python -m benchmarks.measuring KIND NAME PORT LOGPROBS NUMBER...

Prints numbers as JSON, each named with its unit. Kinds and their numbers:

- `speed TOKENS`: one answer, read to its end.
- `flow STREAMS SECONDS RATE`: so many answers at once, after a second in which they settle. The text of a
  token is its time of sending (replay --timed), from which its latency is known.
- `first TIMES`: time to the first token, of a client that is connected, and of one that is made anew.
- `process`: the moment of the first token; whoever started the process knows when that was.
- `abort STREAMS TIMES`: the moments of the calls, by the lengths asked for; the server's log has the rest.
- `memory STREAMS`: what a stream takes, once so many of them flow.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from typing import Any, Final

from benchmarks.clients import CLIENTS, Client

Numbers = dict[str, Any]
SETTLE_S: Final = 1.0
FLOWING_S: Final = 15.0
WARM_UP_TOKENS: Final = 20
ABORTED_TOKENS: Final = 1_000_000  # longer than it can last; the number of the abort is added


class Measuring:
    """One client, connected in `work`; `numbers` are what the order has beside."""

    def __init__(self, name: str, port: int, logprobs: bool) -> None:
        self._name = name
        self._port = port
        self._logprobs = logprobs

    async def connect(self, stack: AsyncExitStack) -> Client:
        return await CLIENTS[self._name][0](stack, self._port, self._logprobs)

    async def speed(self, tokens: float) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            await drain(client, int(tokens) // 10)
            cpu, wall = time.process_time(), time.perf_counter()
            count = await drain(client, int(tokens))
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        return {"cpu_us": cpu / count * 1e6, "wall_us": wall / count * 1e6}

    async def flow(self, streams: float, seconds: float, rate: float) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            await drain(client, WARM_UP_TOKENS)
            crowd = Crowd(client, int(streams), int((seconds + 30) * rate))
            await crowd.flowing()
            await asyncio.sleep(SETTLE_S)
            crowd.latencies.clear()
            cpu, wall = time.process_time(), time.perf_counter()
            await asyncio.sleep(seconds)
            cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
            late = crowd.latencies[:]
            await crowd.disperse()
        return {
            "cpu_us": cpu / len(late) * 1e6,
            "core_percent": 100 * cpu / wall,
            "tokens_per_s": len(late) / wall,
            **percentiles(late, p50_us=0.5, p99_us=0.99, p999_us=0.999),
        }

    async def first(self, times: float) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            warm = [await time_first(client) for _ in range(int(times))]
        fresh = []
        for _ in range(max(1, int(times) // 4)):
            async with AsyncExitStack() as stack:
                start = time.monotonic_ns()
                client = await self.connect(stack)
                answer = await client.open(1)
                await anext(answer)
                fresh.append(time.monotonic_ns() - start)
                await client.stop(answer)
        return percentiles(warm, warm_us=0.5) | percentiles(fresh, fresh_us=0.5)

    async def process(self) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            answer = await client.open(1)
            await anext(answer)
            first = time.monotonic_ns()
            await client.stop(answer)
        return {"first_ns": first}

    async def abort(self, streams: float, times: float) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            crowd = Crowd(client, int(streams), ABORTED_TOKENS)
            await crowd.flowing()
            called: dict[int, int] = {}
            for number in range(1, int(times) + 1):
                answer = await client.open(ABORTED_TOKENS + number)
                for _ in range(3):
                    await anext(answer)
                called[ABORTED_TOKENS + number] = time.monotonic_ns()
                await client.stop(answer)
            await asyncio.sleep(0.1)  # for one that closes later than it says
            await crowd.disperse()
        return {"called_ns": called}

    async def memory(self, streams: float) -> Numbers:
        async with AsyncExitStack() as stack:
            client = await self.connect(stack)
            await drain(client, WARM_UP_TOKENS)
            before = private_bytes()
            crowd = Crowd(client, int(streams), ABORTED_TOKENS)
            await crowd.flowing()
            crowd.latencies.clear()
            kilobytes = (private_bytes() - before) / streams / 1024
            await crowd.disperse()
        return {"stream_kb": kilobytes}


class Crowd:
    """Streams that are read at once, and how late, in nanoseconds, each of their tokens came."""

    def __init__(self, client: Client, streams: int, tokens: int) -> None:
        self.latencies: list[int] = []
        self._client = client
        self._silent = streams
        self._all_flow = asyncio.Event()
        self._readers = [asyncio.create_task(self._read(tokens)) for _ in range(streams)]

    async def _read(self, tokens: int) -> None:
        text, now_ns, note = self._client.text, time.monotonic_ns, self.latencies.append
        answer = await self._client.open(tokens)
        await anext(answer)
        self._silent -= 1
        if not self._silent:
            self._all_flow.set()
        async for step in answer:
            if said := text(step):
                note(now_ns() - int(said))

    async def flowing(self) -> None:
        """Until each has had a token, or as long as a client that cannot do it may be given."""
        if self._silent:
            with suppress(TimeoutError):
                async with asyncio.timeout(FLOWING_S):
                    await self._all_flow.wait()

    async def disperse(self) -> None:
        """Raises what a reader raised."""
        for each in self._readers:
            each.cancel()
        for result in await asyncio.gather(*self._readers, return_exceptions=True):
            if isinstance(result, Exception):
                raise result


async def drain(client: Client, tokens: int) -> int:
    """Read one answer to its end; how many steps it had."""
    count = 0
    async for _ in await client.open(tokens):
        count += 1
    return count


async def time_first(client: Client) -> int:
    start = time.monotonic_ns()
    answer = await client.open(1)
    await anext(answer)
    passed = time.monotonic_ns() - start
    async for _ in answer:
        pass
    return passed


def percentiles(nanoseconds: list[int], **shares: float) -> Numbers:
    """In microseconds; nothing where nothing was measured."""
    ordered = sorted(nanoseconds)
    last = len(ordered) - 1
    return {name: ordered[int(share * last)] / 1e3 for name, share in shares.items() if ordered}


def private_bytes() -> int:
    """What this process alone keeps in memory."""
    gc.collect()
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def main(arguments: list[str]) -> None:
    kind, name, port, logprobs, *numbers = arguments
    measure: Callable[..., Coroutine[Any, Any, Numbers]]
    measure = getattr(Measuring(name, int(port), logprobs == "1"), kind)
    print(json.dumps(asyncio.run(measure(*map(float, numbers)))))


if __name__ == "__main__":
    main(sys.argv[1:])
