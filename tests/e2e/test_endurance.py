"""A real model that answers again and again while its runner, now and then its daemon, is killed.

No answer loses anything in silence, and nothing is left behind. The full count is that of `make soak`.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_adapter import Finish, OllamaAdapter
from ollama_adapter.stream import REMEMBERED
from ollama_adapter.system.clock import SystemClock
from tests.e2e.test_resume import MODEL, Killer, daemon_of, killing, question, runner_of
from tests.serving import collect, text_of

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.usefixtures("machine"),
    pytest.mark.timeout(36_000),
]

GENERATIONS = 2_000
LENGTH = 48
QUESTIONS = 5
KILL_EVERY = 4
DAEMON_EVERY = 40
LEAK_BYTES = 128 << 10
"""In all, whatever the count."""
ROUND_S = 120.0
MINUTE_NS = 60_000_000_000
OPTIONS: dict[str, dict[str, Any]] = {
    "tokens": {"temperature": 0},
    "rerun": {"temperature": 0.8, "seed": 11},
    "drawn": {},  # what the whole answer would have been, nobody knows
}


class Soak:
    """Asks, kills, and judges what came."""

    def __init__(self, adapter: OllamaAdapter, killer: Killer) -> None:
        self._adapter = adapter
        self._killer = killer
        self._chance = random.Random(4)
        self._wholes: dict[tuple[int, str], str] = {}
        self.outcomes: Counter[str] = Counter()
        self.different: Counter[str] = Counter()

    @property
    def cuts(self) -> int:
        """How many answers were cut, and went on."""
        return sum(n for name, n in self.outcomes.items() if not name.endswith(" 0 seams"))

    async def learn(self) -> None:
        """What the answers are when nobody is killed; and what has a bound begins at it."""
        ended = self._adapter._sessions._ended
        ended.extend(secrets.token_hex(8) for _ in range(REMEMBERED))
        for n in range(QUESTIONS):
            for name in ("tokens", "rerun"):
                self._wholes[n, name] = await self._ask(n, name)

    async def _ask(self, n: int, name: str) -> str:
        tokens = self._adapter.generate_stream(
            MODEL, question(n), num_predict=LENGTH, private=True, **OPTIONS[name]
        )
        async with tokens:
            events = await collect(tokens)
        statistics = tokens.statistics
        assert statistics.finish in (Finish.STOP, Finish.LENGTH)
        assert [each.index for each in events] == list(range(statistics.tokens))
        self.outcomes[f"{name}, {len(statistics.seams)} seams"] += 1
        return text_of(events)

    async def generation(self, place: int) -> None:
        """The `place`-th of them; every KILL_EVERY-th is cut, at an index drawn by chance."""
        async with asyncio.timeout(ROUND_S):
            n, name = self._chance.randrange(QUESTIONS), self._chance.choice(list(OPTIONS))
            if place % KILL_EVERY == 0:
                await self._aim(daemon_of if place % DAEMON_EVERY == 0 else runner_of)
            text = await self._ask(n, name)
            if text != self._wholes.get(
                (n, name), text
            ):  # two tokens may be all but equally likely
                self.different[name] += 1
            self._killer.target = None
            self._fade()

    def _fade(self) -> None:
        """Frames show who has ended until its energy is gone: here is one of a minute later."""
        composer = self._killer._composer
        composer.compose(0, SystemClock().now_ns() + MINUTE_NS, 0)
        assert not composer.active

    async def _aim(self, victim: Callable[[OllamaAdapter], int]) -> None:
        await self._adapter.ensure_running()
        await self._adapter.pool.ensure_loaded(MODEL)
        await self._ask(0, "tokens")  # the runner that was killed last has a successor now
        self._killer.at = self._chance.randrange(4)  # early: a short answer is soon over
        self._killer.target = victim(self._adapter)

    async def at_rest(self) -> tuple[int, int, int, int]:
        """Tasks, open files, traced and resident bytes, with a daemon and a runner at hand."""
        await self._ask(0, "tokens")
        self._fade()
        gc.collect()
        process = psutil.Process()
        traced = tracemalloc.get_traced_memory()[0]
        return len(asyncio.all_tasks()), process.num_fds(), traced, process.memory_info().rss


async def test_killed_runners_and_daemons_lose_nothing_and_leave_nothing_behind(
    machine: Path, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    count = scaled(GENERATIONS)
    tracemalloc.start()
    try:
        async with killing() as (adapter, killer):
            asyncio.get_running_loop().set_debug(False)
            soak = Soak(adapter, killer)
            await soak.learn()
            first = max(count // 10, KILL_EVERY + 1)
            for place in range(first):  # the first kill is that of a daemon
                await soak.generation(place)
            before = await soak.at_rest()
            place = first
            while place < count or (not soak.cuts and place < 10 * count):
                await soak.generation(place)
                place += 1
            after = await soak.at_rest()
    finally:
        tracemalloc.stop()
        asyncio.get_running_loop().set_debug(True)
    left = [late - early for early, late in zip(before, after, strict=True)]
    what, times = "generations of tinydoc with kills: ", place
    for outcome, number in soak.outcomes.items():
        measured(what + outcome, number, "", "", times)
    measured(what + "other than the uncut ones", soak.different.total(), "", "", times)
    measured(what + "tasks left", left[0], "≤ 0", "tasks", times)
    measured(what + "files and sockets left", left[1], "≤ 0", "files", times)
    measured(what + "traced memory left", left[2] / 1024, "", "KiB", times)
    measured(what + "resident memory more", left[3] / (1 << 20), "", "MiB", times)
    assert left[0] <= 0, "tasks were left behind"
    assert left[1] <= 0, "files were left behind"
    assert left[2] < LEAK_BYTES, "memory was left behind"
    assert soak.different.total() <= max(1, place // 100), soak.different
    assert soak.cuts, "no kill came in time"
