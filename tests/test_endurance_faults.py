"""Generations with random faults, thousands of them: none loses anything in silence, nothing is left behind.

The full count is that of `make soak`; `make test` runs a hundredth of it.
"""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
import tracemalloc
from collections import Counter
from collections.abc import AsyncIterator, Callable

import psutil
import pytest

from ollama_adapter import Finish, OllamaAdapter
from ollama_adapter.stream import REMEMBERED
from ollama_adapter.testing import FaultKind, PretendOllama
from ollama_adapter.testing.faults import CUTS
from tests.faulty import PLACES, Case, Resume, Told, begin, judge, judge_case, limits, read, rig
from tests.serving import until

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(36_000)]

GENERATIONS = 100_000
LEAK_BYTES = 128 << 10
"""In all, whatever the count: caches and free lists that were not full yet."""
ROUND_S = 60.0
PROMPTS = [f"Tell me of river {each}." for each in range(6)]
SOUND = 0.2
"""The share of generations to which nothing happens."""
TOGETHER = 0.1
"""The share of rounds in which some run at once, and meet the same faults."""
COSTLY = {FaultKind.STALL: 0.04, FaultKind.DIE: 0.1}
"""Faults that take time of their own are drawn as much less often."""
KINDS = sorted(CUTS)
WEIGHTS = [COSTLY.get(each, 1.0) for each in KINDS]
LIMITS = [
    limits(resume, kind)
    for resume in (Resume.OFF, Resume.RERUN)
    for kind in (FaultKind.RST, FaultKind.STALL)
]


class Soak:
    """Draws generations and their faults, and judges what came of each."""

    def __init__(self, daemon: PretendOllama, adapters: list[OllamaAdapter]) -> None:
        self.daemon = daemon
        self.adapters = adapters
        self.chance = random.Random(4)
        self.wholes: dict[str, str] = {}
        self.count = 0
        self.outcomes: Counter[str] = Counter()

    async def learn(self) -> None:
        """What the answers are without a fault; and what has a bound begins at it."""
        for each in self.adapters:
            each._sessions._ended.extend(secrets.token_hex(8) for _ in range(REMEMBERED))
            # each pool has a task that watches what is in memory
            await each.pool.ensure_loaded("pretend")
        for prompt in PROMPTS:
            told = await read(begin(self.adapters[0], Case(FaultKind.RST, ""), prompt))
            assert told.error is None
            self.wholes[prompt] = told.text

    async def round(self) -> None:
        """One generation, or some at once."""
        async with asyncio.timeout(ROUND_S):
            drawn = self.chance.random()
            if drawn < SOUND:
                await self._one("", self._case())
            elif drawn < SOUND + TOGETHER:
                await self._some()
            else:
                case = self._case()
                await self._one(case.fault, case)
            await until(lambda: self.daemon.alive and not self.daemon.connections)
        self.daemon._requests.clear()
        self.daemon._generations.clear()

    def _case(self) -> Case:
        chance = self.chance
        (kind,) = chance.choices(KINDS, WEIGHTS)
        chat, logprobs = chance.random() < 0.5, chance.random() < 0.25
        return Case(kind, chance.choice(list(PLACES)), chat, logprobs, chance.choice(list(Resume)))

    def _begin(self, case: Case, impatient: bool = False) -> tuple[str, asyncio.Task[Told]]:
        adapter = self.adapters[2 * (case.resume is not Resume.OFF) + impatient]
        prompt = self.chance.choice(PROMPTS)
        self.count += 1
        return prompt, adapter._scope.spawn(read(begin(adapter, case, prompt)), name="reader")

    async def _one(self, fault: str, case: Case) -> None:
        self.daemon.faults = fault
        prompt, reading = self._begin(case, impatient="stall" in fault)
        told = await reading
        if fault:
            assert len(self.daemon.struck) == 1, "the fault did not happen"
            judge_case(told, self.wholes[prompt], case)
        else:
            judge(told, self.wholes[prompt])
            assert told.error is None
        self._note(told)

    async def _some(self) -> None:
        """Whom the faults meet is chance: only that nothing is lost in silence is known."""
        cases = [self._case() for _ in range(self.chance.randint(2, 4))]
        mild = [each for each in cases if each.kind not in COSTLY]
        self.daemon.faults = ", ".join(each.fault for each in mild)
        running = [self._begin(each) for each in cases]
        for prompt, reading in running:
            judge(await reading, self.wholes[prompt])
            self._note(reading.result())

    def _note(self, told: Told) -> None:
        seams = told.tokens.statistics.seams
        self.outcomes[
            type(told.error).__name__
            if told.error
            else "repeat"
            if told.tokens.statistics.finish is Finish.REPEAT
            else f"whole, {len(seams)} seams"
        ] += 1

    async def at_rest(self) -> tuple[int, int, int, int]:
        """Tasks, open files, traced bytes and resident bytes once everything has ended."""
        gc.collect()
        process = psutil.Process()
        traced = tracemalloc.get_traced_memory()[0]
        return len(asyncio.all_tasks()), process.num_fds(), traced, process.memory_info().rss


@pytest.fixture
async def soak(anyio_backend: object) -> AsyncIterator[Soak]:
    loop = asyncio.get_running_loop()
    loop.set_debug(False)  # it remembers where everything was made: what is measured is ours alone
    try:
        async with rig(*LIMITS) as (daemon, adapters):
            yield Soak(daemon, adapters)
    finally:
        loop.set_debug(True)


async def test_random_faults_lose_nothing_in_silence_and_leave_nothing_behind(
    soak: Soak, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    count = scaled(GENERATIONS)
    tracemalloc.start()
    try:
        await soak.learn()
        while soak.count < count // 10:
            await soak.round()
        before = await soak.at_rest()
        while soak.count < count:
            await soak.round()
        after = await soak.at_rest()
    finally:
        tracemalloc.stop()
    left = [late - early for early, late in zip(before, after, strict=True)]
    what, times = "scripted generations with random faults: ", soak.count
    for outcome, number in soak.outcomes.items():
        measured(what + outcome, number, "", "", times)
    measured(what + "tasks left", left[0], "≤ 0", "tasks", times)
    measured(what + "files and sockets left", left[1], "≤ 0", "files", times)
    measured(what + "traced memory left", left[2] / 1024, "", "KiB", times)
    measured(what + "resident memory more", left[3] / (1 << 20), "", "MiB", times)
    assert left[0] <= 0, "tasks were left behind"
    assert left[1] <= 0, "sockets were left behind"
    assert left[2] < LEAK_BYTES, "memory was left behind"
    assert soak.outcomes["whole, 1 seams"] and soak.outcomes["StreamInterrupted"]
