"""Each way a download can fail says what to do."""

from __future__ import annotations

import pytest

from ollama_adapter.core.pull_errors import pull_error
from ollama_adapter.errors import PullFailed, PullRefused


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("status 404", "r.example has no model m:1", "spelling"),
        ("status 401", "r.example does not deliver m:1: {why}", "private"),
        ("disk", "the disk does not take it: {why}", "free some space"),
        ("untrusted", "r.example cannot prove who it is: {why}", "between you and the registry"),
        ("stalled", "r.example has fallen silent: {why}", "goes on from there"),
        ("network", "r.example does not deliver m:1: {why}", "goes on from there"),
    ],
)
def test_it_is_told_in_words(kind: str, message: str, hint: str) -> None:
    error = pull_error(kind, "{why}", host="r.example", model="m:1")
    assert isinstance(error, PullFailed)
    assert str(error) == message
    assert hint in error.hint
    assert ("what has come is kept" in error.hint) == (not kind.startswith("status"))


@pytest.mark.parametrize("kind", ["disk", "untrusted", "stalled", "network", "status 403"])
def test_nothing_is_kept_where_nothing_has_come(kind: str) -> None:
    error = pull_error(kind, "why", host="r.example", model="m:1", begun=False)
    assert "kept" not in error.hint and "nothing of it has come: pull again" in error.hint


@pytest.mark.parametrize("refused", ["cdn.example", ""])
def test_a_host_that_is_not_allowed_is_named(refused: str) -> None:
    error = pull_error("refused", "cdn.example", host="r.example", model="m:1", refused=refused)
    assert isinstance(error, PullRefused)
    assert "r.example sends us to cdn.example" in str(error)
    assert "add cdn.example to pool.registries" in error.hint
