"""The life of the daemon, as a table: what each state answers to, and what comes of it."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class DaemonState(StrEnum):
    STOPPED = "stopped"
    STARTING = "starting"
    READY = "ready"
    UNHEALTHY = "unhealthy"
    STOPPING = "stopping"
    FAILED = "failed"


class Signal(StrEnum):
    SPAWNED = "spawned"
    PROBE_OK = "probe ok"
    PROBE_FAILED = "probe failed"
    EXITED = "exited"
    GAVE_UP = "gave up"
    STOP = "stop"


class IllegalTransition(RuntimeError):
    """A signal that makes no sense in this state: a bug of ours."""


_S, _E = DaemonState, Signal

TRANSITIONS: Final[dict[DaemonState, dict[Signal, DaemonState]]] = {
    _S.STOPPED: {
        _E.SPAWNED: _S.STARTING,
        _E.PROBE_OK: _S.READY,  # adopted
        _E.GAVE_UP: _S.FAILED,
        _E.STOP: _S.STOPPED,
    },
    _S.STARTING: {
        _E.PROBE_OK: _S.READY,
        _E.PROBE_FAILED: _S.STARTING,
        _E.EXITED: _S.STOPPED,
        _E.GAVE_UP: _S.FAILED,
        _E.STOP: _S.STOPPING,
    },
    _S.READY: {
        _E.PROBE_OK: _S.READY,
        _E.PROBE_FAILED: _S.UNHEALTHY,
        _E.EXITED: _S.STOPPED,
        _E.STOP: _S.STOPPING,
    },
    _S.UNHEALTHY: {
        _E.PROBE_OK: _S.READY,
        _E.PROBE_FAILED: _S.UNHEALTHY,
        _E.EXITED: _S.STOPPED,
        _E.STOP: _S.STOPPING,
    },
    _S.STOPPING: {_E.EXITED: _S.STOPPED, _E.STOP: _S.STOPPING},
    _S.FAILED: {
        _E.SPAWNED: _S.STARTING,
        _E.PROBE_OK: _S.READY,
        _E.GAVE_UP: _S.FAILED,
        _E.STOP: _S.STOPPED,
    },
}


def advance(state: DaemonState, signal: Signal) -> DaemonState:
    """The next state. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state][signal]
    except KeyError:
        raise IllegalTransition(f"{signal} while {state}") from None
