"""A model store that its user may not write, or not even read: a shared one, or one's own that is shut."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ollama_adapter.embedded.store import TINYDOC
from tests.system.jail.grounds import ROOT, USERS, run_staged

COMMAND = ("-m", "ollama_adapter")
STAGES = {"as it is": {}, "namespaces switched off": {"refuse": True}}


def store_of(user: str, homes: Path, mode: int) -> Path:
    """What that user's daemon reads: ours, with these rights for the user, who adopts nothing."""
    settings = homes / user / ".config" / "ollama-adapter" / "config.toml"
    settings.parent.mkdir(parents=True)
    settings.write_text("[daemon]\nport = 9\n")
    store = homes / user / ".ollama" / "models"
    store.mkdir(parents=True)
    store.chmod(mode)
    return store


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("user", USERS)
def test_a_daemon_serves_from_a_store_that_it_may_only_read(
    user: str, stage: str, homes: Path
) -> None:
    store_of(user, homes, 0o555)
    argv = [*COMMAND, "run", "hi", "--json", "-o", "num_predict=2"]
    done = run_staged(argv, user, homes, **STAGES[stage])
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


@pytest.mark.parametrize("user", [each for each in USERS if each != "root"])
@pytest.mark.parametrize("command", [["import", str(TINYDOC)], ["pull", "-y"]])
def test_nothing_can_be_put_into_it_and_that_is_said_at_once(
    user: str, command: list[str], homes: Path
) -> None:
    store = store_of(user, homes, 0o755)
    (store / "blobs").mkdir(mode=0o555)
    done = run_staged([*COMMAND, *command, "mine"], user, homes)
    assert done.returncode == 1
    *_, error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: nothing can be put into the model store {store}: ")
    assert "set OLLAMA_MODELS to a directory that you may write" in hint


@pytest.mark.parametrize("user", USERS)
def test_a_store_that_cannot_be_read_is_named_and_foreseen(user: str, homes: Path) -> None:
    store = store_of(user, homes, 0o700 if ROOT else 0)
    done = run_staged([*COMMAND, "run", "hi"], user, homes)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith(f"error: the model store {store} cannot be read")
    assert "OLLAMA_MODELS" in hint
    status = run_staged([*COMMAND, "status", "--json"], user, homes)
    doctor = run_staged([*COMMAND, "doctor", "--json"], user, homes)
    assert (status.returncode, doctor.returncode) == (1, 1)
    assert json.loads(status.stdout)["problem"] == error.removeprefix("error: ")
    assert json.loads(doctor.stdout)["obstacle"] == error.removeprefix("error: ")
