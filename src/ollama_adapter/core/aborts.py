"""What an abort may claim and what it may do: the phase a session was in, rest, the rungs of a ladder.

An abort is confirmed when the runner has come to rest: the CPU time of its processes stands still for
two samples. Where that cannot be told, the receipt says why rather than guess. A rung that hurts another
session, or a daemon that is not ours, is not climbed.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from ollama_adapter.config import Rung
from ollama_adapter.events import Phase

STILL_SAMPLES: Final = 2
"""How many samples in a row must equal the one before."""


class Doubt(StrEnum):
    """Why an abort is not confirmed."""

    ENDED = "it had ended before the call"
    UNSEEN = "the processes of this daemon cannot be seen"
    NO_RUNNER = "no runner of this daemon was found"
    SHARED = "another session uses the same runner"
    MINGLED = "the runners of several models cannot be told apart"


def phase_of(*, started: bool, ended: bool, sent: bool, tokens: int, ahead: int) -> Phase:
    """How far a session has come. `ahead`: others on its model whose request went out before.

    The daemon says nothing before the first token, so queued and prompt evaluation are told apart by
    our own sessions alone.
    """
    if ended:
        return Phase.ENDED
    if not started:
        return Phase.NOT_STARTED
    if not sent:
        return Phase.LOADING
    if tokens:
        return Phase.DECODING
    return Phase.QUEUED if ahead else Phase.PROMPT_EVALUATION


class Seen(msgspec.Struct, frozen=True):
    """What can be seen of the runner of an aborted session, at one moment."""

    ours: bool
    """We started the daemon, so that all its runners are known."""
    visible: bool
    """The processes of the daemon can be seen."""
    runners: int
    """How many of them may run this model."""
    found: bool
    """One has been there since the abort."""
    identified: bool
    """They run this model and no other."""
    sharing: int
    """Other sessions of ours at work on this model."""
    others: int
    """Other sessions of ours at work on any model."""


def doubt(seen: Seen) -> Doubt | None:
    """Why rest could not be told from what is seen; None where it can."""
    if seen.sharing:
        return Doubt.SHARED
    if not seen.visible:
        return Doubt.UNSEEN
    if not seen.runners:
        return None if seen.ours or seen.found else Doubt.NO_RUNNER
    return Doubt.MINGLED if seen.others and not seen.identified else None


class Rest:
    """Whether processes have come to rest, from samples of their CPU time."""

    def __init__(self) -> None:
        self._spent: dict[int, float] | None = None
        self._still = 0
        self.since_ns = 0
        """When the first of the samples was taken that are all alike."""

    @property
    def still(self) -> bool:
        return self._still >= STILL_SAMPLES

    def sample(self, now_ns: int, spent: Mapping[int, float], *, runnable: bool) -> None:
        """The seconds of CPU time of each process; `runnable`: one of them wants the CPU."""
        if runnable or spent != self._spent:  # also where a process has come or gone
            self._spent = dict(spent)
            self._still = 0
            self.since_ns = now_ns
        else:
            self._still += 1


def refusal(rung: Rung, seen: Seen) -> str:
    """Why a rung is not climbed; "" where it may be."""
    if seen.sharing:
        return f"{rung} would hurt another session of this model"
    if rung is Rung.RESTART and not seen.ours:
        return f"{rung} is only for a daemon that is ours"
    if rung is Rung.RESTART and seen.others and not seen.identified:
        return f"{rung} might hurt the session of another model"
    if doubt(seen) is not None:
        return f"{rung} was not tried"
    if rung is Rung.RESTART and not seen.runners:
        return f"{rung} found no process to end"
    return ""
