"""Kill -9 of each process, at random moments of a whole application: nobody is left, and no port."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from ollama_adapter.config import Sandbox
from ollama_adapter.errors import NotSandboxed
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from tests import family
from tests.system.jail.application import MOMENTS, SANDBOXES, without_what_is_better
from tests.system.jail.grounds import HERE, USERS, environment_of, facts_of, staged
from tests.system.jail.warden import Warden, doors_of, in_session, listening, watching

GOAL_S = 0.5
WATCHDOG_S = 10.0  # a busy machine may take longer to look
START_S = 60.0
SPREAD_S = {"starting": 0.8, "loading": 0.3, "generating": 0.1, "idle": 0.05}
ROLES = ("application", "keeper", "daemon", "runner")
LEVELS = (Level.NAMESPACES, Level.GUARD, Level.PARTIAL, Level.NONE)
PAIRS = [
    # each role and each level in `make test`; in `make soak` each pair of them, so 100 kills of each role
    pytest.param(role, level, marks=pytest.mark.soak if (i + j) % 2 else ())
    for i, role in enumerate(ROLES)
    for j, level in enumerate(LEVELS)
]


@dataclass(frozen=True, slots=True)
class Kill:
    """Of whom, when, in whose hands, and behind which walls."""

    role: str
    moment: str
    level: Level
    user: str


@contextlib.contextmanager
def application(kill: Kill, homes: Path) -> Iterator[subprocess.Popen[str]]:
    stay = "generating" if (kill.role, kill.moment) == ("runner", "starting") else kill.moment
    argv = [sys.executable, str(HERE / "application.py"), kill.level, stay]
    with subprocess.Popen(
        staged(argv, kill.user),
        env=environment_of(kill.user, homes),
        cwd="/",
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def come_to(moment: str, process: subprocess.Popen[str], kill: Kill) -> None:
    """Until it says so."""
    assert process.stdout is not None
    for line in process.stdout:
        word, _, rest = line.strip().partition(" ")
        if word == "sandbox":
            assert rest == level_of(kill), f"{kill}: the level in force is {rest}"
        if word == moment:
            return
    raise AssertionError(f"{kill}: the application ended by itself")


def level_of(kill: Kill) -> str:
    """The level that is to be reported here: where the wanted one does not hold, another, or a refusal."""
    wish = SANDBOXES.get(kill.level, Sandbox.ENFORCED)
    try:
        facts = without_what_is_better(facts_of(kill.user), kill.level)
        return levels.decide(facts, wish.value).level.words
    except NotSandboxed:
        return "refused: NotSandboxed"


def choose(role: str, process: psutil.Process) -> psutil.Process:
    """The one to be killed, once it is there."""
    victim = process if role == "application" else family.find(process, role)
    deadline = time.monotonic() + START_S
    while victim is None:
        assert time.monotonic() < deadline, f"there is no {role}"
        assert process.status() != psutil.STATUS_ZOMBIE, "the application ended by itself"
        victim = family.find(process, role)
    return victim


def until_gone(left: Callable[[], set[psutil.Process]], doors: set[str], kill: Kill) -> float:
    """Seconds until nobody is left, and no port."""
    start = time.monotonic()
    while (who := left()) or (open_ := doors & listening()):
        took = time.monotonic() - start
        assert took < WATCHDOG_S, f"{kill}: left behind after {took:.1f} s: {who or open_}"
    return time.monotonic() - start


def carry_out(kill: Kill, warden: Warden, homes: Path, chance: random.Random) -> float:
    with application(kill, homes) as started:
        process = psutil.Process(started.pid)
        late = (kill.role, kill.moment) == ("runner", "starting")
        come_to("loading" if late else kill.moment, started, kill)
        with contextlib.suppress(subprocess.TimeoutExpired):
            started.wait(chance.random() * SPREAD_S["loading" if late else kill.moment])
        victim = choose(kill.role, process)
        relatives = family.family_of(process)
        doors = doors_of(relatives)
        assert not (doors and kill.level is Level.NAMESPACES), f"{kill}: it has a port"
        session = relatives[0].pid if relatives else 0
        victim.kill()

        def left() -> set[psutil.Process]:
            if kill.role == "runner":  # the others live on
                return {victim} & warden.descendants()
            return warden.orphans(process) | (in_session(session) if session else set())

        took = until_gone(left, doors if kill.role != "runner" else set(), kill)
        assert started.stdin is not None
        started.stdin.close()
        started.wait(START_S)
        until_gone(warden.descendants, doors, kill)
        return took


@pytest.mark.parametrize(("role", "level"), PAIRS)
def test_whoever_is_killed_whenever_nobody_is_left(
    role: str,
    level: Level,
    homes: Path,
    scaled: Callable[[int], int],
    measured: Callable[..., None],
) -> None:
    chance = random.Random(f"{role} {level}")
    times: list[float] = []
    with watching() as warden:
        for _ in range(scaled(25)):
            kill = Kill(role, chance.choice(MOMENTS), level, chance.choice(USERS))
            if level_of(kill) != level.words:
                with application(kill, homes) as started:
                    come_to("sandbox", started, kill)
                continue
            times.append(carry_out(kill, warden, homes, chance))
    if times:
        measured(f"kill -9 of the {role} to nobody left, {level}", times, f"≤ {GOAL_S}", "s")
