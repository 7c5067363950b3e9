"""A million tokens through the whole path, frames among it: memory stays where it was.

The full count is that of `make soak`; `make test` runs a hundredth of it.
"""

from __future__ import annotations

import asyncio
import gc
import secrets
import tracemalloc
from collections.abc import Callable

import psutil
import pytest

from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.stream import REMEMBERED
from ollama_adapter.system.clock import monotonic_ns
from ollama_adapter.testing import ManualClock, ScriptedDaemon, answer, stream
from tests.serving import config_for, sending, until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(36_000)]

TOKENS = 1_000_000
ANSWER = 1_000
SECOND_NS = 1_000_000_000
TOGETHER = 5
LEAK_BYTES = 128 << 10
"""In all, whatever the count: caches and free lists that were not full yet."""


def a_long_answer() -> bytes:
    """With two of the most probable tokens for each."""
    best = [{"token": " a", "logprob": -0.25}, {"token": " b", "logprob": -1.5}]
    *records, last = answer(f" {each % 97}" for each in range(ANSWER))
    for each in records:
        entry = {"token": each["response"], "logprob": -0.5, "top_logprobs": best}
        each["logprobs"] = [entry]
    return stream([*records, last])


async def at_rest(
    orchestrator: Orchestrator, daemon: ScriptedDaemon, clock: ManualClock
) -> tuple[int, int]:
    """Traced and resident bytes, once every session has ended and no frame shows it any more."""

    def drained() -> bool:
        clock.advance(10 * SECOND_NS)
        return "asleep" in repr(orchestrator.decipher)

    await until(drained)
    daemon.requests.clear()
    gc.collect()
    return tracemalloc.get_traced_memory()[0], psutil.Process().memory_info().rss


async def read_to_its_end(orchestrator: Orchestrator) -> int:
    adapter, count = orchestrator.adapter, 0
    async for event in adapter.generate_stream("m", "x", top_logprobs=2, logprobs=True):
        assert event.index == count
        count += 1
    return count


async def read(orchestrator: Orchestrator, clock: ManualClock, tokens: int) -> int:
    """So many tokens or a few more, some answers at once, and a frame after them."""
    count = 0
    while count < tokens:
        counts = await asyncio.gather(*(read_to_its_end(orchestrator) for _ in range(TOGETHER)))
        assert counts == [ANSWER] * TOGETHER
        count += sum(counts)
        clock.advance(SECOND_NS // 60)
    return count


async def test_memory_is_flat_over_a_million_tokens(
    scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # it remembers where everything was made: what is measured is ours alone
    clock = ManualClock(monotonic_ns())  # arrivals are stamped by the machine's own
    tracemalloc.start()
    try:
        async with (
            ScriptedDaemon(sending(a_long_answer())) as daemon,
            Orchestrator(config_for(daemon), clock=clock) as orchestrator,
        ):
            ended = orchestrator.adapter._sessions._ended  # bounded, and so at its bound
            ended.extend(secrets.token_hex(8) for _ in range(REMEMBERED))
            await read(orchestrator, clock, 2 * ANSWER * TOGETHER)
            before = await at_rest(orchestrator, daemon, clock)
            count = await read(orchestrator, clock, scaled(TOKENS))
            after = await at_rest(orchestrator, daemon, clock)
            assert orchestrator.last_frame is not None
            energy = orchestrator.last_frame.total_energy
    finally:
        tracemalloc.stop()
        loop.set_debug(True)
    assert energy > 0, "no token was shown"
    what = "tokens through the whole path: "
    measured(what + "traced memory more", (after[0] - before[0]) / 1024, "≤ 128", "KiB", count)
    measured(what + "resident memory more", (after[1] - before[1]) / (1 << 20), "", "MiB", count)
    assert after[0] - before[0] < LEAK_BYTES, "memory was left behind"
