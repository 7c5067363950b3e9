"""The same on other machines: as an ordinary user, and where user namespaces are switched off by policy.

Root's Python often lies in root's home, and most machines allow user namespaces; so these tests set the stage
for others (see stage.py), and ask which level is reported there.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ollama_adapter.errors import NotSandboxed
from ollama_adapter.system.jail.levels import Decision, decide
from tests.system.jail.grounds import HERE, USERS, facts_of, run_staged

AGAIN = ("test_spawn.py", "test_embedded.py", "test_proof.py", "test_seal.py", "test_dumps.py")
STAGES = {
    "as it is": {},
    "namespaces switched off": {"refuse": True},
    "in a container": {"refuse": True, "contain": True},  # as root it has few rights there
}
CASES = [
    (user, stage)
    for user in USERS
    for stage in STAGES
    if (user, stage) != ("ordinary", "in a container")  # which takes nothing from it
]


def decision_for(user: str, stage: str) -> Decision:
    """What our own probe and our own rule make of it there."""
    try:
        return decide(facts_of(user, **STAGES[stage]))
    except NotSandboxed as error:
        pytest.fail(f"nothing holds here, and no daemon is started: {error}")


@pytest.mark.parametrize(("user", "stage"), CASES)
def test_the_level_that_holds_is_the_one_that_is_reported(
    user: str, stage: str, homes: Path
) -> None:
    expected = decision_for(user, stage)
    if STAGES[stage]:
        assert expected.level == "guard"
        assert [each.partition(":")[0] for each in expected.reasons] == ["namespaces"]
    done = run_staged(["-m", "ollama_adapter", "doctor", "--json"], user, homes, **STAGES[stage])
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["level"], found["reasons"]) == (expected.level, list(expected.reasons))
    assert found["proofs"]
    assert all(each["reason"] for each in found["proofs"]), found["proofs"]


@pytest.mark.parametrize("user", USERS)
def test_in_a_container_a_daemon_answers_from_under_the_guard(user: str, homes: Path) -> None:
    """Even root may not look into another user's process there, so the guard is the daemon's user."""
    argv = [str(HERE / "application.py"), "guard", "idle"]
    done = run_staged(argv, user, homes, **STAGES["in a container"])
    assert done.returncode == 0, done.stdout + done.stderr
    said = ["starting", "sandbox guard", "loading", "generating", "idle"]
    assert done.stdout.splitlines() == said, done.stderr


@pytest.mark.parametrize("user", USERS)
def test_a_level_that_fails_though_the_machine_promised_it_is_told_with_the_reason(
    user: str, homes: Path
) -> None:
    done = run_staged([str(HERE / "promised.py")], user, homes, **STAGES["namespaces switched off"])
    assert (done.returncode, done.stdout) == (0, "guard\n"), done.stderr
    (told,) = done.stderr.splitlines()
    assert told.startswith("the daemon cannot be started at level namespaces: ")
    assert "cannot be started: " in told.partition(": ")[2]


@pytest.mark.soak
@pytest.mark.parametrize(("user", "stage"), CASES)
def test_the_tests_of_this_directory_pass_there_and_leave_nothing_out(
    user: str, stage: str, homes: Path, measured: Callable[..., None]
) -> None:
    paths = [str(HERE / each) for each in AGAIN]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    done = run_staged(command, user, homes, **STAGES[stage])
    last = done.stdout.strip().rpartition("\n")[2]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "skipped" not in last
    measured(
        f"tests of the jail that pass, as {user}, {stage}", int(last.split()[0]), "≥ 40", "tests"
    )
