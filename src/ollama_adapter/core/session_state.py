"""The energy state of a session, as a table with guards.

A session is one generation. Time comes in as an argument, and every guard has an analytic instant:
a transition carries the instant at which it became true, not the one at which somebody looked.
Hence `advance` may be called at any instants in order, or at none: the transitions are the same.
Between tokens E is known (it decays from the last token on), so nothing has to be sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import StrEnum
from math import log2
from typing import Final, NamedTuple

from ollama_adapter.core.energy import MS, EnergyProfile, decayed
from ollama_adapter.events import State

HIGH: Final = 0.85
HIGH_NS: Final = 800 * MS
LOW: Final = 0.70
NEVER_NS: Final = 1 << 63


class Signal(StrEnum):
    """What may move a session from one state to another."""

    REQUEST = "request"
    TOKEN = "token"
    SURGE = "surge"  # E at least 0.85 for 800 ms
    EBB = "ebb"  # E below 0.70
    LATE = "late"  # two tokens in a row, each after a stall
    SILENT = "silent"  # no token for twice the stall limit
    IN_TIME = "in_time"  # a token without a stall before it
    CUT = "cut"  # the stream was interrupted, and is to go on
    ENDED = "ended"  # done, aborted, failed, cut at a limit

    __hash__ = str.__hash__  # that of Enum is no C, and tokens look signals up


# By name, once: `Signal.TOKEN` is a call of a descriptor each time, and this is the token path.
REQUEST, TOKEN, SURGE, EBB, LATE, SILENT, IN_TIME, CUT, ENDED = Signal
IDLE, CHARGING, FLOWING, SATURATED, STALLING, DRAINED = State

TRANSITIONS: Final[dict[State, dict[Signal, State]]] = {
    IDLE: {REQUEST: CHARGING},
    CHARGING: {TOKEN: FLOWING, ENDED: DRAINED},
    FLOWING: {SURGE: SATURATED, LATE: STALLING, SILENT: STALLING, CUT: STALLING, ENDED: DRAINED},
    SATURATED: {EBB: FLOWING, LATE: STALLING, SILENT: STALLING, CUT: STALLING, ENDED: DRAINED},
    STALLING: {IN_TIME: FLOWING, ENDED: DRAINED},
    DRAINED: {},
}


class Transition(NamedTuple):
    """A state, and the instant from which it holds."""

    state: State
    instant_ns: int


class SessionState:
    """Follows one session through the table. A signal unknown to its state changes nothing.

    None of its past is kept: `told`, where it is given, is called with each transition.
    """

    __slots__ = (
        "_arrival_ns",
        "_energy",
        "_half_ns",
        "_high_ns",
        "_late",
        "_row",
        "_since_ns",
        "_stall_ns",
        "_told",
        "state",
        "wake_ns",
    )

    def __init__(
        self, profile: EnergyProfile, told: Callable[[Transition], object] | None = None
    ) -> None:
        self.state = IDLE
        self._told = told
        self._since_ns = -NEVER_NS  # from when the state holds
        self._row = TRANSITIONS[IDLE]
        self._stall_ns = profile.stall_ms * MS
        self._half_ns = profile.half_life_ms * MS
        self._arrival_ns = 0
        self._energy = 0.0  # right after the last token
        self._late = False  # whether the last token was
        self._high_ns: int | None = None  # since when E is at least HIGH
        self.wake_ns = 0  # time alone brings nothing before

    def request(self, now_ns: int) -> None:
        self._fire(REQUEST, now_ns)

    def token(self, now_ns: int, energy: float, delta_ns: int) -> None:
        """A token arrived at `now_ns`, `delta_ns` after the one before; E is `energy` after it."""
        if now_ns >= self.wake_ns:
            self.advance(now_ns)
        high_ns = self._high_ns
        if high_ns is not None and now_ns < self._arrival_ns:
            high_ns += now_ns - self._arrival_ns  # the clock stepped back
        if energy < HIGH:
            high_ns = None
        elif high_ns is None or self._energy_at(now_ns) < HIGH:
            high_ns = now_ns
        self._high_ns, self._arrival_ns, self._energy = high_ns, now_ns, energy
        before, self._late = self._late, delta_ns > self._stall_ns
        if TOKEN in self._row:
            self._fire(TOKEN, now_ns)
        elif not self._late:
            if IN_TIME in self._row:
                self._fire(IN_TIME, now_ns)
        elif before:
            self._fire(LATE, now_ns)
        if energy < LOW:
            self._fire(EBB, now_ns)
        self.wake_ns = now_ns + self._stall_ns
        if high_ns is not None and SURGE in self._row:
            self.wake_ns = min(self.wake_ns, high_ns + HIGH_NS)
            self.advance(now_ns)  # back from a stall, it may have been high for long enough

    def tokens_at_once(self, energies: Sequence[float]) -> None:
        """More tokens at the instant of the last one: no time passes, so E alone can move the state."""
        now_ns = self._arrival_ns
        if SILENT not in self._row:  # neither flowing nor saturated
            for energy in energies:
                self.token(now_ns, energy, 0)
            return
        lowest, last = min(energies), energies[-1]
        if lowest < LOW:
            self._fire(EBB, now_ns)
        if last < HIGH:
            self._high_ns = None
        elif self._high_ns is None or lowest < HIGH:
            self._high_ns = now_ns
            self.wake_ns = min(self.wake_ns, now_ns + HIGH_NS)
        self._energy, self._late = last, False

    def advance(self, now_ns: int) -> None:
        """Make the transitions that time alone has brought, up to and including `now_ns`."""
        if now_ns >= self.wake_ns:
            while due := self._due(now_ns):
                self._fire(*due)
            if SILENT not in self._row:  # time alone brings nothing until the next token
                self.wake_ns = NEVER_NS

    def cut(self, now_ns: int) -> None:
        """The stream was interrupted: it stalls until tokens flow again."""
        self.advance(now_ns)
        self._fire(CUT, now_ns)

    def end(self, now_ns: int) -> None:
        """The generation is over, however it ended."""
        self.advance(now_ns)
        self._fire(ENDED, now_ns)

    def _due(self, now_ns: int) -> tuple[Signal, int] | None:
        silent_ns = self._arrival_ns + 2 * self._stall_ns
        if self.state is FLOWING:
            if self._high_ns is not None:
                surge_ns = self._high_ns + HIGH_NS
                lasts = self._energy_at(surge_ns) >= HIGH
                if lasts and surge_ns <= now_ns and surge_ns < silent_ns:
                    return SURGE, surge_ns
        elif self.state is not SATURATED:
            return None
        elif self._energy_at(min(now_ns, silent_ns)) < LOW:
            ebb_ns = self._arrival_ns + self._stall_ns + fall_ns(self._energy, LOW, self._half_ns)
            if ebb_ns < silent_ns:  # silent beats ebb
                return EBB, ebb_ns
        return (SILENT, silent_ns) if silent_ns <= now_ns else None

    def _energy_at(self, now_ns: int) -> float:
        return decayed(self._energy, now_ns - self._arrival_ns - self._stall_ns, self._half_ns)

    def _fire(self, signal: Signal, instant_ns: int) -> None:
        state = self._row.get(signal)
        if state is None:
            return
        if signal is EBB:
            self._high_ns = None
        if instant_ns < self._since_ns:  # it holds from when the one before it did, at the earliest
            instant_ns = self._since_ns
        self.state, self._row, self._since_ns = state, TRANSITIONS[state], instant_ns
        if self._told is not None:
            self._told(Transition(state, instant_ns))


def fall_ns(energy: float, level: float, half_life_ns: int) -> int:
    """How long the decay of `energy` takes to fall below `level` (> 0), to the nanosecond.

    The logarithm is right to a fraction of one; the last steps ask the decay itself, so that the
    two agree.
    """
    lag = max(0, int(half_life_ns * log2(energy / level)) - 1) if energy >= level else 0
    while decayed(energy, lag, half_life_ns) >= level:
        lag += 1
    return lag
