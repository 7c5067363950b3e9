"""The tick grid, and what one tick shows: events since the last tick become a Frame.

The grid is `start + n / rate`, in integer nanoseconds: a late tick is skipped, nothing drifts.
Ledger law: summing frames gives the stream back, no token lost and none counted twice. `ingest` is
O(1) and raises for no event. A frame depends on the events and on its instant, never on which ticks
were skipped before. The composer only reads the mappers: each has its generation for a writer.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, isfinite
from typing import Any, Final

from ollama_adapter.core.energy import DRAINED_BELOW, EUMapper, profile_for
from ollama_adapter.core.ensemble import mean_energy
from ollama_adapter.core.session_state import SessionState
from ollama_adapter.events import Frame, SessionFrame, State, TokenEvent

SECOND_NS: Final = 1_000_000_000

# A frame with several sessions shows the state of the most alive.
DRAINED: Final = State.DRAINED  # looked up once: a member of an enum takes Python 0.1 µs to find
LIVELIEST: Final = (
    State.SATURATED,
    State.FLOWING,
    State.CHARGING,
    State.STALLING,
    State.DRAINED,
    State.IDLE,
)


def tick_instant(start_ns: int, tick: int, rate_hz: int) -> int:
    """When tick number `tick` is due."""
    return start_ns + tick * SECOND_NS // rate_hz


def next_tick(start_ns: int, now_ns: int, rate_hz: int, tick: int) -> int:
    """The first tick after `tick` that is not yet past at `now_ns`; those between are skipped."""
    return max(tick + 1, -((start_ns - now_ns) * rate_hz // SECOND_NS))


def due_tick(start_ns: int, now_ns: int, rate_hz: int, tick: int) -> int:
    """The tick that a ticker which waited for `tick` shows at `now_ns`: a later one if it woke late."""
    return max(tick, ((now_ns - start_ns + 1) * rate_hz - 1) // SECOND_NS)


class _Lane:
    """One session: who knows its energy and state, and what came since the last frame."""

    __slots__ = (
        "arrival_ns",
        "first",
        "generated",
        "last",
        "mapper",
        "rate",
        "rate_ns",
        "tokens",
        "tracker",
        "weight",
    )

    def __init__(self, mapper: EUMapper, tracker: SessionState, weight: float) -> None:
        self.mapper = mapper
        self.tracker = tracker
        self.weight = weight
        self.arrival_ns: int | None = None
        self.tokens = 0
        self.first: int | None = None
        self.last: int | None = None
        self.generated = 0.0
        self.rate = 0.0  # EU/s, at rate_ns
        self.rate_ns = 0

    def count(self, event: TokenEvent) -> None:
        """Without an energy, or with one that is none, a token brings 0 EU."""
        energy = event.energy
        if energy is None or not 0.0 <= energy <= 1.0:
            energy = 0.0
        now_ns, before_ns = event.arrival_ns, self.arrival_ns
        delta_ns = 0 if before_ns is None or now_ns < before_ns else now_ns - before_ns
        self.tracker.token(now_ns, energy, delta_ns)
        self.rate = self.rate_at(now_ns) + energy
        self.arrival_ns = self.rate_ns = now_ns
        self.generated += energy
        self.tokens += 1
        self.last = event.index
        if self.first is None:
            self.first = self.last

    def count_read(self, events: Sequence[TokenEvent]) -> None:
        """Count tokens that arrived at one instant."""
        self.count(events[0])
        if len(events) > 1:
            energies = [
                energy if (energy := each.energy) is not None and 0.0 <= energy <= 1.0 else 0.0
                for each in events[1:]
            ]
            self.tracker.tokens_at_once(energies)
            generated = sum(energies)
            self.rate += generated
            self.generated += generated
            self.tokens += len(energies)
            self.last = events[-1].index

    def rate_at(self, now_ns: int) -> float:
        """EU/s: every token counts its E, fading with a time constant of 1 s."""
        lag_ns = now_ns - self.rate_ns
        return self.rate * exp(-lag_ns / SECOND_NS) if lag_ns > 0 else self.rate


class FrameComposer:
    """Takes token events at any time and gives one Frame per tick.

    `total_energy` and `tick` continue an earlier account: a replay starts from those of its trace.
    """

    def __init__(self, *, total_energy: float = 0.0, tick: int | None = None) -> None:
        self.total_energy = total_energy
        self.tick = tick  # of the last frame; None where the ticker slept since
        self._lanes: dict[str, _Lane] = {}

    @property
    def active(self) -> bool:
        """Whether there is anything to show. If not, the ticker may sleep until the next `open`."""
        return bool(self._lanes)

    def open(self, session_id: str, mapper: EUMapper, now_ns: int, weight: float = 1.0) -> None:
        """A session was requested at `now_ns`. `weight` is its part in the ensemble.

        The id of a session that has ended may serve again at once. Raises ValueError for a weight
        that is negative or not finite.
        """
        if not (isfinite(weight) and weight >= 0.0):
            raise ValueError(
                f"the weight of a session is {weight}, and must be finite and at least 0"
            )
        tracker = SessionState(mapper.profile)
        tracker.request(now_ns)
        lane = self._lanes.get(session_id)
        if lane is None:
            self._lanes[session_id] = _Lane(mapper, tracker, weight)
        else:  # what it has counted since the last frame stays counted
            lane.mapper, lane.tracker, lane.weight = mapper, tracker, weight
            lane.arrival_ns = None

    def ingest(self, event: TokenEvent) -> None:
        """Count a token; one of a session that is not open, too, which is shown once, as DRAINED."""
        self._lane_of(event).count(event)

    def ingest_read(self, events: Sequence[TokenEvent]) -> None:
        """Count the tokens of one read: at least one, of one session, of one instant."""
        self._lane_of(events[0]).count_read(events)

    def _lane_of(self, event: TokenEvent) -> _Lane:
        lane = self._lanes.get(event.session_id)
        if lane is None:
            self.open(event.session_id, EUMapper(profile_for()), event.arrival_ns)
            self.end(event.session_id, event.arrival_ns)
            lane = self._lanes[event.session_id]
        return lane

    def interrupt(self, session_id: str, now_ns: int) -> None:
        """A session's stream was cut and is to go on: it stalls. Ignores unknown ids."""
        lane = self._lanes.get(session_id)
        if lane is not None:
            lane.tracker.cut(now_ns)

    def end(self, session_id: str, now_ns: int) -> None:
        """A session is over; frames show it until it has drained. Ignores unknown ids."""
        lane = self._lanes.get(session_id)
        if lane is not None:
            lane.tracker.end(now_ns)

    def compose(
        self,
        tick: int,
        now_ns: int,
        epoch_ms: int,
        *,
        queue_depth: int = 0,
        processing_ns: int = 0,
    ) -> Frame:
        """The frame of `tick`, which is also its id. Sessions that it shows drained are dropped."""
        sessions: dict[str, SessionFrame] = {}
        generated = rate = weights = weighted = 0.0
        tokens = merged = 0
        over: list[str] = []
        for session_id, lane in self._lanes.items():
            # Written out: a call for each session and tick adds up. While tokens flow there is none.
            mapper, tracker, fading = lane.mapper, lane.tracker, lane.rate
            if now_ns >= tracker.wake_ns:
                tracker.advance(now_ns)
            state = tracker.state
            energy = mapper.energy
            if now_ns > mapper.falls_ns or energy < DRAINED_BELOW:
                energy = mapper.at(now_ns)
            if fading and (lag_ns := now_ns - lane.rate_ns) > 0:
                fading *= exp(-lag_ns / SECOND_NS)
            if count := lane.tokens:
                tokens += count
                merged += count - 1
                generated += lane.generated
                sessions[session_id] = SessionFrame(energy, state, count, lane.first, lane.last)
                lane.tokens, lane.first, lane.last, lane.generated = 0, None, None, 0.0
            else:
                sessions[session_id] = SessionFrame(energy, state)
            drained = not energy and state is DRAINED
            if not drained:  # nor does its weight count any more
                weights += lane.weight
                weighted += lane.weight * energy
            if fading >= DRAINED_BELOW:
                rate += fading
            elif drained:
                over.append(session_id)
        for session_id in over:
            del self._lanes[session_id]
        self.total_energy += generated
        skipped = 0 if self.tick is None else max(0, tick - self.tick - 1)
        self.tick = tick if self._lanes else None
        return Frame(
            frame_id=tick,
            monotonic_ns=now_ns,
            epoch_ms=epoch_ms,
            new_tokens=tokens,
            energy_generated=generated,
            total_energy=self.total_energy,
            energy_rate=rate,
            energy=mean_energy(weighted, weights),
            state=_liveliest(sessions),
            sessions=sessions,
            queue_depth=queue_depth,
            tokens_merged=merged,
            skipped=skipped,
            processing_ns=processing_ns,
        )


def _liveliest(sessions: dict[str, SessionFrame]) -> State:
    present = {each.state for each in sessions.values()}
    return next((state for state in LIVELIEST if state in present), State.IDLE)


def energy_update(frame: Frame, *, event_id: str = "") -> dict[str, Any]:
    """The frame as WF-TECH-005 writes it: an `energy.update` event with the keys that it allows.

    `event_id` is a uuid, if one is wanted instead of "frame-N". That event knows no state SATURATED
    and no more than 100 new tokens; `total_energy` is exact all the same.
    """
    state = State.FLOWING if frame.state is State.SATURATED else frame.state
    return {
        "id": event_id or f"frame-{frame.frame_id}",
        "type": "energy.update",
        "timestamp": frame.epoch_ms,
        "version": "1.0",
        "payload": {
            "frame_id": frame.frame_id,
            "new_tokens": min(frame.new_tokens, 100),
            "energy_generated": frame.energy_generated,
            "total_energy": frame.total_energy,
            "energy_rate": frame.energy_rate,
            "state": state.name,
            "queue_depth": frame.queue_depth,
            "processing_time_ms": frame.processing_ns / 1_000_000,
        },
    }
