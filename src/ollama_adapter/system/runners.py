"""What can be seen of a daemon's runners from outside: that they are there, and that they work.

A runner is a child process of the daemon. That of one model is known by the file of its weights, which
stands in its arguments, Ollama's and our own daemon's alike.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from ollama_adapter.config import LOOPBACK
from ollama_adapter.system.clock import Clock
from ollama_adapter.veiled import Veiled

LOOK_NS: Final = 200_000_000  # between two looks at the CPU time
RUNNABLE: Final = "R"
FRESH_NS: Final = 50_000_000  # a sample serves all who want one meanwhile
STARTER: Final = os.path.join("embedded", "starter.py")


class Runners(msgspec.Struct, frozen=True):
    """How many processes a daemon has, whether one worked while we looked, or wanted to."""

    count: int | None = None
    working: bool | None = None
    runnable: bool = False


class Sample(Veiled, msgspec.Struct, frozen=True):
    """What the runners had done at one moment: seconds of CPU time of each that lives, by its pid."""

    taken_ns: int
    spent: dict[int, float]
    runnable: bool
    identified: bool
    """They run the model that was asked for, and no other."""
    processes: Sequence[Any] = ()


async def look(daemon_pid: int | None, clock: Clock) -> Runners:
    """Look twice at the daemon's children. Takes 0.2 s; cancelling is safe."""
    sampler = Sampler(clock)
    before = await sampler.sample(daemon_pid, "")
    if before is None:
        return Runners()
    await clock.sleep_until_ns(clock.now_ns() + LOOK_NS)
    after = await sampler.sample(daemon_pid, "") or Sample(0, {}, False, False)
    working = any(spent > before.spent.get(pid, 0.0) for pid, spent in after.spent.items())
    return Runners(len(after.spent), working, before.runnable or after.runnable)


async def at_work(daemon_pid: int | None, weights: Sequence[str], clock: Clock) -> dict[str, bool]:
    """Which models work, by the names of their files: of each whose runner is seen whether it works.

    Takes 0.2 s where there is anything to see; cancelling is safe.
    """
    sampler = Sampler(clock)
    before = {each: await sampler.sample(daemon_pid, each) for each in weights}
    seen = {each: held for each, held in before.items() if held is not None and held.identified}
    if not seen:
        return {}
    await clock.sleep_until_ns(clock.now_ns() + LOOK_NS)
    working: dict[str, bool] = {}
    for each, held in seen.items():
        after = await sampler.sample(daemon_pid, each)
        if after is not None and after.identified:
            spent = sum(after.spent.values()) - sum(held.spent.values())
            working[each] = spent > 0 or after.runnable
    return working


def take(daemon_pid: int | None, weights: str, clock: Clock) -> Sample | None:
    """The runners of a model, by the name of its file; all of them where it is "" or unknown to them.

    None where the daemon's processes cannot be seen.
    """
    if daemon_pid is None:
        return None
    import psutil  # here and not above: nothing is imported before it is needed

    found: list[tuple[Any, float, bool, bool]] = []
    try:
        for child in psutil.Process(daemon_pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                command = child.cmdline()
                if child.status() != psutil.STATUS_ZOMBIE and _is_runner(child, command):
                    times = child.cpu_times()
                    named = bool(weights) and any(weights in each for each in command)
                    found.append((child, times.user + times.system, _wants_cpu(child), named))
    except psutil.NoSuchProcess:
        pass
    except psutil.Error:
        return None
    identified = any(named for *_, named in found)
    mine = [each for each in found if each[3] or not identified]
    return Sample(
        clock.now_ns(),
        {process.pid: spent for process, spent, *_ in mine},
        any(running for _, _, running, _ in mine),
        identified,
        [process for process, *_ in mine],
    )


def _wants_cpu(process: Any) -> bool:
    """One of its threads runs, or would if it were let: a machine that is starved is not at rest."""
    try:
        for thread in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                state = (thread / "stat").read_text("ascii", "replace").rpartition(")")[2]
                if state.split()[0] == RUNNABLE:
                    return True
        return False
    except OSError:  # another system than Linux, or another user
        return bool(process.status() == "running")


class Sampler:
    """Takes samples, in a thread: to find the children of a process every process is looked at.

    Those who ask at about the same time, for the same runners, share one.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._latest: dict[tuple[int | None, str], tuple[int, asyncio.Future[Sample | None]]] = {}

    async def sample(self, daemon_pid: int | None, weights: str) -> Sample | None:
        """As `take`. Cancelling is safe."""
        now_ns, key = self._clock.now_ns(), (daemon_pid, weights)
        self._latest = {
            each: latest for each, latest in self._latest.items() if now_ns - latest[0] < FRESH_NS
        }
        if key not in self._latest:
            loop = asyncio.get_running_loop()
            work = loop.run_in_executor(None, take, daemon_pid, weights, self._clock)
            self._latest[key] = now_ns, work
        return await asyncio.shield(self._latest[key][1])


def end(sample: Sample) -> None:
    """Kill the processes of a sample; one that has gone already is left alone, whoever has its pid."""
    import psutil

    for process in sample.processes:
        with contextlib.suppress(psutil.Error):
            process.kill()


def listener_pid(port: int) -> int | None:
    """The process that listens on a loopback port, where it is this user's and not this very one."""
    import psutil

    places = [(address, port) for address in (LOOPBACK, "0.0.0.0", "::")]

    try:
        for each in psutil.net_connections("tcp"):
            listens = each.status == psutil.CONN_LISTEN and each.laddr
            if listens and each.laddr[:2] in places and each.pid:
                return None if each.pid == os.getpid() else each.pid
    except (psutil.Error, OSError):
        pass
    return None


def _is_runner(process: Any, command: list[str]) -> bool:
    """Not what our own daemon has besides: who starts the runners, and one that waits for its first model.

    That one has no name yet, and no second thread; where the kernel lets none take a name, all have none.
    """
    if any(each.endswith(STARTER) for each in command):
        return False
    return not "".join(command[-1:]).isspace() or bool(process.num_threads() > 1)
