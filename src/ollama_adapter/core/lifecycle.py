"""The life of the daemon, as a table: what each state answers to, and what comes of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class DaemonState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"  # adopting or spawning
    READY = "ready"
    UNHEALTHY = "unhealthy"  # it runs, and did not answer
    BACKING_OFF = "backing off"  # it ended or did not start; the next try comes by itself
    STOPPING = "stopping"
    FAILED = "failed"  # given up; the next caller makes it try again


class Signal(StrEnum):
    WANTED = "wanted"
    PROBE_OK = "probe ok"
    PROBE_FAILED = "probe failed"
    ENDED = "ended"
    GAVE_UP = "gave up"
    STOP = "stop"


class IllegalTransition(RuntimeError):
    """A signal that makes no sense in this state: a bug of ours."""


_S, _E = DaemonState, Signal

TRANSITIONS: Final[dict[DaemonState, dict[Signal, DaemonState]]] = {
    _S.STOPPED: {_E.WANTED: _S.STARTING, _E.STOP: _S.STOPPED},
    _S.STARTING: {
        _E.PROBE_OK: _S.READY,
        _E.ENDED: _S.BACKING_OFF,
        _E.GAVE_UP: _S.FAILED,
        _E.STOP: _S.STOPPING,
    },
    _S.READY: {
        _E.PROBE_OK: _S.READY,
        _E.PROBE_FAILED: _S.UNHEALTHY,
        _E.ENDED: _S.BACKING_OFF,
        _E.STOP: _S.STOPPING,
    },
    _S.UNHEALTHY: {
        _E.PROBE_OK: _S.READY,
        _E.PROBE_FAILED: _S.UNHEALTHY,
        _E.ENDED: _S.BACKING_OFF,
        _E.STOP: _S.STOPPING,
    },
    _S.BACKING_OFF: {
        _E.WANTED: _S.STARTING,
        _E.GAVE_UP: _S.FAILED,
        _E.STOP: _S.STOPPING,
    },
    _S.STOPPING: {_E.ENDED: _S.STOPPED, _E.STOP: _S.STOPPING},
    _S.FAILED: {_E.WANTED: _S.STARTING, _E.STOP: _S.STOPPED},
}


def advance(state: DaemonState, signal: Signal) -> DaemonState:
    """The next state. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state][signal]
    except KeyError:
        raise IllegalTransition(f"{signal} while {state}") from None
