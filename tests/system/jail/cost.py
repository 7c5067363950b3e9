"""What the jail costs: per spawn, per token, and until the adapter is ready; run as a script.

argv: how often each is measured, how many tokens come, then the levels to try. Prints as JSON, by level: seconds of each spawn of a
program that ends at once; how often keeper and process 1 woke while a number of tokens came; and seconds from
the daemon's first answer to anybody until the adapter calls it ready.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

import ollama_adapter.system.spawning
from ollama_adapter import OllamaAdapter, TokenStream
from ollama_adapter.errors import TransportError
from ollama_adapter.system.clock import SystemClock
from ollama_adapter.system.dialing import find_free_port
from ollama_adapter.system.fetching import fetch
from ollama_adapter.system.http import encode_request
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.paths import daemon_policy
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.process import Child, spawn
from ollama_adapter.system.running import Running
from ollama_adapter.system.scope import TaskScope
from ollama_adapter.system.spawning import Spawner
from tests import family
from tests.system.jail.application import ENDLESS, config_for, without_what_is_better

VERSION = encode_request("GET", "/api/version")
LOOK_EVERY_NS = 1_000_000
WINDOWS = (
    3  # what is woken by a token is woken in each of them; what the start has left to do, is not
)
FACTS = levels.probe()


async def time_a_spawn(level: Level, home: str) -> float:
    """From the order until the program has run and all is over."""
    argv = [sys.executable, "-I", "-S", "-c", ""]
    policy = daemon_policy(level, argv, home=home, models=home, port=find_free_port())
    scope = TaskScope()
    start = time.monotonic()
    child = await spawn(argv, {}, "/", scope, policy)
    exit_ = await child.exited
    took = time.monotonic() - start
    await scope.aclose()
    assert (child.level, exit_.returncode) == (level, 0), exit_.tail
    return took


class Watched(Spawner):
    """Somebody else asks the daemon, too, all the time: when does it answer?"""

    answered: float

    async def _until_ready(self, child: Child, port: int) -> str:
        watcher = self._scope.spawn(self._watch(child, port), name="observer")
        version = await super()._until_ready(child, port)
        await watcher
        return version

    async def _watch(self, child: Child, port: int) -> None:
        dial, clock = Running("", port, "", child).dial, SystemClock()
        while not child.exited.done():
            with contextlib.suppress(TransportError):
                await fetch(dial, VERSION, connect_s=5, answer_s=5)
                Watched.answered = time.monotonic()
                return
            await clock.sleep_until_ns(clock.now_ns() + LOOK_EVERY_NS)


async def time_until_ready(level: Level) -> float:
    """Below zero: the adapter was the first whom it answered."""
    adapter = OllamaAdapter(config_for(level))
    try:
        await adapter.ensure_running()
        ready = time.monotonic()
        assert (await adapter.health()).sandbox == level.words
        return ready - Watched.answered
    finally:
        await adapter.aclose()


async def wakes_while_tokens_come(level: Level, tokens: int) -> dict[str, int]:
    """Of everybody between us and the daemon: they have nothing to do with a token."""
    adapter = OllamaAdapter(config_for(level))
    try:
        await adapter.ensure_running()
        stream = adapter.generate_stream("tinydoc", "x", format=ENDLESS, num_predict=100_000)
        await read(stream, 10)
        between = [
            each
            for each in family.family_of(psutil.Process())
            if family.role_of(each) in ("keeper", "trampoline")
        ]
        wakes = tokens
        for _ in range(WINDOWS):
            before = sum(map(switches, between))
            await read(stream, tokens)
            wakes = min(wakes, sum(map(switches, between)) - before)
        await stream.stop()
        return {"between": len(between), "tokens": tokens, "wakes": wakes}
    finally:
        await adapter.aclose()


async def read(stream: TokenStream, count: int) -> None:
    for _ in range(count):
        await anext(stream)


def switches(process: psutil.Process) -> int:
    """How often it was given a processor; one that sleeps all the time is given none."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)


async def measure(times: int, tokens: int, wanted: list[Level]) -> dict[Level, dict[str, Any]]:
    report: dict[Level, dict[str, Any]] = {each: {"spawn_s": [], "ready_s": []} for each in wanted}
    with tempfile.TemporaryDirectory() as base:
        os.chmod(base, 0o755)
        homes = {each: os.path.join(base, each) for each in wanted}
        for home in homes.values():
            os.mkdir(home)
        for _ in range(times):
            for level in wanted:
                report[level]["spawn_s"].append(await time_a_spawn(level, homes[level]))
    for level in wanted:
        facts = without_what_is_better(FACTS, level)
        levels.probe = functools.cache(lambda facts=facts: facts)
        ollama_adapter.system.spawning.Spawner = Spawner  # type: ignore[misc]
        report[level] |= await wakes_while_tokens_come(level, tokens)
        ollama_adapter.system.spawning.Spawner = Watched  # type: ignore[misc]
        for _ in range(times):
            report[level]["ready_s"].append(await time_until_ready(level))
    return report


if __name__ == "__main__":
    times, tokens, *wanted = sys.argv[1:]
    report = asyncio.run(measure(int(times), int(tokens), [Level(each) for each in wanted]))
    json.dump(report, sys.stdout)
