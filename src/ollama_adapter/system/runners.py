"""What can be seen of a daemon's runners from outside: that they are there, and that they work."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ollama_adapter.system.clock import Clock

LOOK_NS: Final = 200_000_000  # between two looks at the CPU time


@dataclass(frozen=True, slots=True)
class Runners:
    """How many processes a daemon has, whether one worked while we looked, or wanted to."""

    count: int | None = None
    working: bool | None = None
    runnable: bool = False


@dataclass(frozen=True, slots=True)
class _Look:
    spent: dict[int, float]
    """Seconds of CPU time of each child that lives, by its pid."""
    runnable: bool


async def look(daemon_pid: int | None, clock: Clock) -> Runners:
    """Look twice at the daemon's children. Takes 0.2 s; cancelling is safe."""
    before = _look(daemon_pid)
    if before is None:
        return Runners()
    await clock.sleep_until_ns(clock.now_ns() + LOOK_NS)
    after = _look(daemon_pid) or _Look({}, False)
    working = any(spent > before.spent.get(pid, 0.0) for pid, spent in after.spent.items())
    return Runners(len(after.spent), working, before.runnable or after.runnable)


def _look(daemon_pid: int | None) -> _Look | None:
    if daemon_pid is None:
        return None
    import psutil  # here and not above: nothing is imported before it is needed

    spent: dict[int, float] = {}
    runnable = False
    try:
        for child in psutil.Process(daemon_pid).children(recursive=True):
            status = child.status()
            if status != psutil.STATUS_ZOMBIE:
                times = child.cpu_times()
                spent[child.pid] = times.user + times.system
                runnable = runnable or status == psutil.STATUS_RUNNING
    except psutil.NoSuchProcess:
        pass
    except psutil.Error:
        return None
    return _Look(spent, runnable)
