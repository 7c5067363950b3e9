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
STAGES = [(user, refuse) for user in USERS for refuse in (False, True)]


def decision_for(user: str, refuse: bool) -> Decision:
    """What our own probe and our own rule make of it there."""
    try:
        return decide(facts_of(user, refuse=refuse))
    except NotSandboxed as error:
        pytest.fail(f"nothing holds here, and no daemon is started: {error}")


@pytest.mark.parametrize(("user", "refuse"), STAGES)
def test_the_level_that_holds_is_the_one_that_is_reported(
    user: str, refuse: bool, homes: Path
) -> None:
    expected = decision_for(user, refuse)
    if refuse:
        assert expected.level == "guard"
        assert [each.partition(":")[0] for each in expected.reasons] == ["namespaces"]
    done = run_staged(["-m", "ollama_adapter", "doctor", "--json"], user, homes, refuse=refuse)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    assert (found["level"], found["reasons"]) == (expected.level, list(expected.reasons))
    assert found["proofs"]
    assert all(each["reason"] for each in found["proofs"]), found["proofs"]


@pytest.mark.soak
@pytest.mark.parametrize(("user", "refuse"), STAGES)
def test_the_tests_of_this_directory_pass_there_and_leave_nothing_out(
    user: str, refuse: bool, homes: Path, measured: Callable[..., None]
) -> None:
    paths = [str(HERE / each) for each in AGAIN]
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *paths]
    done = run_staged(command, user, homes, refuse=refuse)
    last = done.stdout.strip().rpartition("\n")[2]
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr
    assert "skipped" not in last
    where = ", namespaces switched off" if refuse else ""
    measured(
        f"tests of the jail that pass, as {user}{where}", int(last.split()[0]), "≥ 60", "tests"
    )
