"""Why a stream stands still, in one word: from progress and from what can be seen of the processes.

The daemon answers while its runner hangs, and sends no byte before the first token; so neither silence
nor an answer to a health request says anything by itself. No request is made to find out.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec


class Stall(StrEnum):
    CONSUMER_PAUSED = "the reader is not reading"
    DAEMON_DEAD = "the daemon does not answer"
    LOADING = "the model is being loaded"
    QUEUED = "another generation of this model runs first"
    EVALUATING = "the prompt is being evaluated"
    RUNNER_DEAD = "the process that runs the model has died"
    RUNNER_HUNG = "the process that runs the model stands still"
    HOST_STARVED = "the machine has no time for the model"
    UNKNOWN = "the processes of this daemon cannot be seen"


class Evidence(msgspec.Struct, frozen=True):
    """What was seen. None: it cannot be seen here (a daemon of somebody else)."""

    paused: bool
    answers: bool
    loading: bool
    tokens: int
    others: int
    """Other sessions of ours on the same model that have begun and not ended."""
    runners: int | None
    """Processes of the daemon that could run a model."""
    working: bool | None
    """Whether the CPU time of one of them grew while we looked."""
    runnable: bool
    """Whether one of them wanted the CPU."""


def diagnose(seen: Evidence) -> Stall:
    """The likeliest cause of a stream that does not move."""
    if seen.paused:
        return Stall.CONSUMER_PAUSED
    if not seen.answers:
        return Stall.DAEMON_DEAD
    if seen.loading:
        return Stall.LOADING
    if seen.runners is None or seen.working is None:
        return Stall.QUEUED if seen.others and not seen.tokens else Stall.UNKNOWN
    if not seen.runners:
        return Stall.RUNNER_DEAD
    if seen.others and not seen.tokens:
        return Stall.QUEUED
    if seen.working and not seen.tokens:
        return Stall.EVALUATING
    return Stall.HOST_STARVED if seen.working or seen.runnable else Stall.RUNNER_HUNG
