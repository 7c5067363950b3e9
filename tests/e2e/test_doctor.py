"""`doctor` tells which level holds here, and proves it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ollama_adapter.system.jail import levels
from ollama_adapter.testing import BackgroundOllama

pytestmark = pytest.mark.usefixtures("machine")

WATCHDOG_S = 60


def doctor(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ollama_adapter", "doctor", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=WATCHDOG_S,
        check=False,
    )


def test_every_attack_from_inside_the_jail_is_refused() -> None:
    done = doctor("--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["level"] == levels.decide(levels.probe()).level.value
    assert found["healthy"] is True
    assert len(found["proofs"]) >= 6
    assert all(each["reason"] for each in found["proofs"]), found["proofs"]


def test_people_are_told_in_words() -> None:
    done = doctor()
    assert done.returncode == 0, done.stderr
    assert "sandbox" in done.stdout and "dial out" in done.stdout
    assert "SUCCEEDED" not in done.stdout


def test_a_sandbox_that_was_switched_off_is_said_so_and_proves_nothing() -> None:
    found = json.loads(doctor("--json", OLLAMA_ADAPTER_DAEMON_SANDBOX="none").stdout)
    assert (found["level"], found["proofs"]) == ("none", [])


def test_where_a_daemon_may_only_be_adopted_one_must_run() -> None:
    with BackgroundOllama() as daemon:
        only = {"OLLAMA_ADAPTER_DAEMON_MODE": "adopt", "OLLAMA_HOST": f"127.0.0.1:{daemon.port}"}
        found = doctor("--json", **only)
        assert (found.returncode, json.loads(found.stdout)["obstacle"]) == (0, "")
    found = doctor("--json", **only)
    assert found.returncode == 1
    assert "none runs on" in json.loads(found.stdout)["obstacle"]
