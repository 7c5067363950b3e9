"""What the jail costs: nothing per token; how much per start is measured, not asserted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.system.jail.policy import Level
from tests.system.jail.grounds import HERE, USERS, lacking, run_staged

JAILS = (Level.NAMESPACES, Level.GUARD, Level.PARTIAL)


@pytest.mark.parametrize(
    "user", [pytest.param(each, marks=[pytest.mark.soak] * (each != USERS[-1])) for each in USERS]
)
def test_a_jail_costs_nothing_per_token_and_little_per_start(
    user: str, homes: Path, scaled: Callable[[int], int], measured: Callable[..., None]
) -> None:
    times, tokens = scaled(20), max(100, scaled(500))
    wanted = [Level.NONE, *(each for each in JAILS if not lacking(user, each))]
    done = run_staged([str(HERE / "cost.py"), str(times), str(tokens), *wanted], user, homes)
    assert done.returncode == 0, done.stderr
    report: dict[str, dict[str, Any]] = json.loads(done.stdout)
    without = min(report[Level.NONE]["spawn_s"])  # what others run only ever adds
    for level in wanted:
        told = report[level]
        assert told["between"] == (3 if level is Level.NAMESPACES else 1)
        assert told["wakes"] == 0, f"{level}: who stands between was woken by tokens: {told}"
        what = f"wakes of keeper and process 1, {level}, as {user}"
        measured(what, told["wakes"], "= 0", "wakes", told["tokens"])
        ready_ms = [max(0.0, each * 1e3) for each in told["ready_s"]]
        measured(f"ready after its first answer, {level}, as {user}", ready_ms, "≤ 50", "ms")
        if level is not Level.NONE:
            more_ms = (min(told["spawn_s"]) - without) * 1e3
            what = f"trampoline per spawn (least of all), {level}, as {user}"
            measured(what, more_ms, "≤ 30", "ms", times)
