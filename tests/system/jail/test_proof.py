"""What `doctor` shows: each harmless attack refused at every level, and successful without one."""

from __future__ import annotations

import anyio
import pytest

from ollama_adapter.errors import NotSandboxed
from ollama_adapter.system.jail import levels, proof
from ollama_adapter.system.jail.harmless import ATTEMPTS
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.jail.proof import Proof, prove
from tests.system.jail.grounds import ROOT

pytestmark = pytest.mark.anyio
NAMES = [each.__name__.replace("_", " ") for each in ATTEMPTS]
NETWORK = {"dial out", "dial another program", "listen on every address"}


NEAR = "127.0.0.9"  # where a packet may leave the process, it stays on the loopback


async def test_without_a_jail_they_succeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "OUTSIDE", NEAR)
    with anyio.fail_after(30):
        proofs = await prove(Level.NONE)
    assert [each.attempt for each in proofs] == NAMES
    reasons = {each.attempt: each.reason for each in proofs if each.refused}
    # a machine without a route has nowhere to dial to; a home may have no keys
    assert set(reasons) <= {"dial out", "send a datagram", "read your keys"}, reasons


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.GUARD, Level.PARTIAL])
async def test_in_a_jail_each_is_refused(level: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    if level is Level.PARTIAL:
        monkeypatch.setattr(proof, "OUTSIDE", NEAR)
    with anyio.fail_after(30):
        try:
            proofs = await prove(level)
        except NotSandboxed as refusal:
            lacking = getattr(levels.probe(), {"guard": "notify"}.get(level, level), "")
            assert lacking or (ROOT and "Permission denied" in str(refusal)), refusal
            return
    assert [each.attempt for each in proofs] == NAMES
    succeeded = {each.attempt for each in proofs if not each.refused}
    assert succeeded <= (NETWORK if level is Level.PARTIAL else set()), proofs


def test_a_proof_knows_whether_it_is_one() -> None:
    assert Proof("dial out", "Permission denied").refused
    assert not Proof("dial out", "").refused
