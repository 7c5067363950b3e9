"""Answers of a real model whose runner or daemon is killed while it writes: they go on, and by the exact
ways they are the uncut ones. Each kill is at an index of its own; at soak, at every one."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pytest

from ollama_adapter import (
    Config,
    DaemonConfig,
    DaemonMode,
    Decipher,
    Finish,
    FrameConfig,
    OllamaAdapter,
    PoolConfig,
    StreamConfig,
    TokenEvent,
)
from ollama_adapter.backing import Backing
from ollama_adapter.core.resuming import FAITHFUL
from ollama_adapter.errors import StreamInterrupted
from ollama_adapter.events import Statistics, Way
from ollama_adapter.system.clock import SystemClock
from tests.serving import collect, text_of

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("machine")]

Measured = Callable[..., None]
MODEL = "tinydoc"
LENGTH = 64
ANSWERS = 20
WATCHDOG_S = 120.0
RUNS_S, STANDS_S = 0.001, 0.004

SUBJECTS = (
    "os.path.join", "len", "print", "sorted", "json.dumps", "re.match", "open", "zip", "map", "dict.get",
    "str.split", "list.append", "range", "sum", "max", "abs", "isinstance", "enumerate", "input", "round",
)  # fmt: skip


class Killer(Decipher):
    """Sees every token as it arrives, and once, at an index, sends SIGKILL to what `target` names."""

    def __init__(self) -> None:
        super().__init__(FrameConfig(), SystemClock())
        self.target: int | None = None
        self.at = 0

    def ingest_read(self, events: Sequence[TokenEvent]) -> None:
        super().ingest_read(events)
        if self.target is not None and events[-1].index >= self.at:
            target, self.target = self.target, None
            with contextlib.suppress(ProcessLookupError):
                os.kill(target, signal.SIGKILL)


@dataclass
class Tally:
    """What came of the kills of one way."""

    cuts: int = 0
    different: int = 0
    ended: int = 0
    fidelities: list[float] = field(default_factory=list)
    gaps_ms: list[float] = field(default_factory=list)

    @property
    def in_time(self) -> int:
        return self.cuts + self.ended

    @property
    def equal_share(self) -> float:
        return 1.0 - self.different / self.cuts if self.cuts else 0.0

    def report(self, measured: Measured, way: str) -> None:
        """Into the page of soak."""
        times = self.in_time
        goal = "" if way == "text" else "≥ 99"
        measured(
            f"by {way}: cut answers equal to the uncut", 100 * self.equal_share, goal, "%", times
        )
        measured(f"by {way}: cut answers ended with the reason", float(self.ended), "", "", times)
        if self.fidelities:
            measured(f"by {way}: fidelity", self.fidelities, "", "")
        measured(f"by {way}: from the kill to the next token", self.gaps_ms, "", "ms")

    def add(self, whole: str, text: str, statistics: Statistics, way: Way) -> None:
        if not statistics.seams:  # the answer was over before the kill arrived
            return
        self.cuts += 1
        self.different += text != whole
        for seam in statistics.seams:
            whole_by_count = seam.index == LENGTH  # only the last record was missing
            assert seam.way in (way, Way.ANEW) or whole_by_count
            self.gaps_ms.append(seam.gap_ms)
            if seam.fidelity is not None:
                self.fidelities.append(seam.fidelity)


class Brake(threading.Thread):
    """Lets a process run for a moment now and then: the model would be done before we can kill it."""

    def __init__(self, pid: int) -> None:
        super().__init__(name="brake")
        self._pid = pid
        self._released = threading.Event()

    def run(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has been killed
            while not self._released.wait(RUNS_S):
                os.kill(self._pid, signal.SIGSTOP)
                self._released.wait(STANDS_S)
                os.kill(self._pid, signal.SIGCONT)

    def __enter__(self) -> Brake:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._released.set()
        self.join()


@asynccontextmanager
async def killing() -> AsyncIterator[tuple[OllamaAdapter, Killer]]:
    killer = Killer()
    limits = StreamConfig(resume_s=60.0)
    daemon = DaemonConfig(
        mode=DaemonMode.EMBEDDED,
        restart_base_s=0.02,
        restart_cap_s=0.2,
        restart_tries=10_000,
        stable_s=1.0,
    )
    config = Config(daemon, PoolConfig(watch_s=0.0), limits)  # its tasks are counted
    async with OllamaAdapter(config, decipher=killer) as adapter:
        yield adapter, killer


def runner_of(adapter: OllamaAdapter) -> int:
    """The process that holds the model."""

    assert adapter.daemon.pid is not None
    family = psutil.Process(adapter.daemon.pid).children(recursive=True)
    (runner,) = (each.pid for each in family if "runner.py" in " ".join(each.cmdline()))
    return runner


def daemon_of(adapter: OllamaAdapter) -> int:
    assert adapter.daemon.pid is not None
    return adapter.daemon.pid


def question(n: int) -> str:
    return f"What does {SUBJECTS[n % len(SUBJECTS)]} do?"


async def cut_once(
    adapter: OllamaAdapter, killer: Killer, victim: int, at: int, n: int, options: Any
) -> tuple[str, Statistics]:
    killer.at, killer.target = at, victim
    async with asyncio.timeout(WATCHDOG_S):
        with Brake(runner_of(adapter)):
            tokens = adapter.generate_stream(MODEL, question(n), num_predict=LENGTH, **options)
            events = await collect(tokens)
    killer.target = None
    assert [each.index for each in events] == list(range(len(events)))
    return text_of(events), tokens.statistics


async def another_prompt(adapter: OllamaAdapter) -> None:
    """So that there is a runner (the last kill may have come too late), in the same state each time."""
    await adapter.generate(MODEL, "?", num_predict=1, private=True)


async def kill_at_many(
    way: Way, options: dict[str, Any], cuts: int, victim_of: Callable[[OllamaAdapter], int]
) -> Tally:
    """`cuts` kills, spread over the answers and over all indices.

    Some come too late, when the answer is over: where hardly any came in time, there are more of them.
    """
    tally, enough = Tally(), max(1, cuts // 8)
    async with killing() as (adapter, killer):
        whole: dict[int, str] = {}
        for cut in range(20 * cuts):
            if cut >= cuts and tally.in_time >= enough:
                break
            n, at = cut % ANSWERS, (cut * 37) % LENGTH
            if n not in whole:
                await another_prompt(adapter)
                answer = await adapter.generate(MODEL, question(n), num_predict=LENGTH, **options)
                whole[n] = answer.text
            await another_prompt(adapter)
            try:
                text, statistics = await cut_once(
                    adapter, killer, victim_of(adapter), at, n, options
                )
            except StreamInterrupted as error:
                assert any("fidelity" in each for each in error.refusals), error.refusals
                tally.ended += 1
                continue
            assert statistics.finish in (Finish.STOP, Finish.LENGTH)
            tally.add(whole[n], text, statistics, way)
    assert tally.in_time >= enough, "too few kills came in time"
    return tally


async def test_by_token_ids_a_killed_runner_changes_nothing(
    machine: Path, scaled: Callable[[int], int], measured: Measured
) -> None:
    cuts = scaled(ANSWERS * LENGTH)
    tally = await kill_at_many(Way.TOKENS, {"temperature": 0}, cuts, runner_of)
    assert tally.equal_share >= 0.99, tally
    assert min(tally.fidelities) > 0.9, tally
    tally.report(measured, "token ids")


async def test_by_a_second_run_a_killed_runner_changes_nothing(
    machine: Path, scaled: Callable[[int], int], measured: Measured
) -> None:
    cuts = scaled(ANSWERS * LENGTH)
    tally = await kill_at_many(Way.RERUN, {"temperature": 0.8, "seed": 11}, cuts, runner_of)
    assert tally.equal_share >= 0.99, tally
    tally.report(measured, "a second run")


async def test_a_killed_daemon_changes_nothing(
    machine: Path, scaled: Callable[[int], int], measured: Measured
) -> None:
    tally = await kill_at_many(
        Way.TOKENS, {"temperature": 0}, max(3, scaled(3 * LENGTH)), daemon_of
    )
    assert tally.equal_share >= 0.99, tally
    tally.report(measured, "token ids, the daemon killed")


async def test_from_text_an_answer_goes_on_or_ends_with_its_reason(
    machine: Path,
    scaled: Callable[[int], int],
    measured: Measured,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As with an Ollama that knows no token ids, and with a request that does not say it is greedy.
    monkeypatch.setattr(Backing, "embedded", property(lambda _: False))
    tally = await kill_at_many(Way.TEXT, {"top_k": 1}, scaled(ANSWERS * LENGTH), runner_of)
    assert all(each >= FAITHFUL for each in tally.fidelities), tally
    assert tally.cuts, tally
    tally.report(measured, "text")
