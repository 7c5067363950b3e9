"""No packet leaves during a whole session, seen by whoever would receive it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.system.jail.policy import Level
from tests.system.jail.grounds import HERE, ROOT, USERS, facts_of, lacking, run_staged

LEVELS = (Level.NONE, Level.PARTIAL, Level.GUARD, Level.NAMESPACES)
SENT = "packets away from the machine in a session"


def run_session(user: str, homes: Path, **wanted: Any) -> dict[str, Any]:
    done = run_staged([str(HERE / "session.py"), *LEVELS], user, homes, **wanted)
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    if report["walls"]:
        assert facts_of(user).namespaces, f"no network of its own: {report['walls']}"
        return {}
    assert report["control"] >= report["sent"] > 0, "the recorder is deaf"
    assert report["lost"] == 0
    return report


def assert_quiet(told: dict[str, Any], level: Level) -> None:
    assert told["said"].startswith("200 "), told
    assert told["away"] == 0, told
    # it has a network of its own, or all was said over the loopback of this one
    assert (told["sent"] == 0) is (level is Level.NAMESPACES), told


@pytest.mark.parametrize("user", USERS)
def test_no_packet_leaves_during_a_session(
    user: str, homes: Path, measured: Callable[..., None]
) -> None:
    report = run_session(user, homes)
    for level in LEVELS if report else ():
        told = report[level]
        if lack := lacking(user, level):
            assert told["said"].startswith("refused: "), (lack, told)
            assert told["away"] == 0
            continue
        assert_quiet(told, level)
        measured(f"{SENT}, {level}, as {user}", told["away"], "= 0", "packets")


def test_the_same_where_python_lies_in_a_home_that_the_daemons_user_cannot_enter(
    homes: Path, measured: Callable[..., None]
) -> None:
    """In namespaces nobody walks there; elsewhere it is refused. An ordinary user's daemon may enter."""
    user = USERS[0]
    env = homes / "closed" / "env"
    python = str(env / Path(sys.executable).relative_to(sys.prefix))
    report = run_session(user, homes, python=python, hide=[sys.prefix, str(env)], open=[])
    for level in LEVELS if report else ():
        told = report[level]
        if ROOT and level in (Level.GUARD, Level.PARTIAL):
            assert told["said"].startswith("refused: "), told
            assert "Permission denied" in told["said"], told
            assert told["away"] == 0
        elif not lacking(user, level):
            assert_quiet(told, level)
            measured(f"{SENT}, {level}, Python in a closed home", told["away"], "= 0", "packets")
