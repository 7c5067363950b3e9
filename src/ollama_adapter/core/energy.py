"""Cadence and certainty in, energy out: E(t), a number in [0, 1] made of measured signals only.

`EUMapper` decides E at every token and between tokens; `certainty` decides how sure a model was.
Formulas and profiles are on docs/energy.md. What holds for any input, odd clocks and NaN included:

- E is finite and within [0, 1]; slower never raises it, surer never lowers it.
- Without tokens E(t) falls to 0; same input, same output, to the last bit.
- Time is in integer nanoseconds. A clock that steps back counts as one that stands still.

Joules are another thing and have another name. This is the hot path: about a microsecond a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, exp2, log
from typing import Final

from ollama_adapter.config import Tier
from ollama_adapter.errors import ConfigError

MS: Final = 1_000_000
WINDOW_NS: Final = 1000 * MS
DRAINED_BELOW: Final = 1 / 512


@dataclass(frozen=True, slots=True)
class EnergyProfile:
    """One row of parameters; its name and tier go into every trace, so that a replay agrees."""

    name: str
    tier: Tier
    tps_max: float
    """Tokens per second at which the velocity is 1; it is 0 at none."""
    stall_ms: int
    """A gap longer than this is a stall: flow falls and decay begins."""
    alpha: float
    """How much of E one token brings."""
    ceil_ms: int = 1500
    """The gap at which flow is 0."""
    half_life_ms: int = 700
    """How long decay takes to halve E."""
    reuse_ms: int = 1000
    """How long a certainty serves for tokens that come without one."""
    candidates: int = 5
    """K, the number of log probabilities asked for: certainties of different K do not compare."""


# fnd-002/1 has the public figures. At those a model of today stands at velocity 1 and shows
# nothing; fnd-002/2 takes the top of what a tier is expected to reach.
_TPS_MAX: Final[dict[str, dict[Tier, float]]] = {
    "fnd-002/1": {Tier.LOW: 10.0, Tier.MID: 14.0, Tier.HIGH: 20.0},
    "fnd-002/2": {Tier.LOW: 15.0, Tier.MID: 30.0, Tier.HIGH: 60.0},
}
_STALL_MS: Final = {Tier.LOW: 500, Tier.MID: 400, Tier.HIGH: 350}
_ALPHA: Final = {Tier.LOW: 0.30, Tier.MID: 0.35, Tier.HIGH: 0.40}

PROFILES: Final[dict[tuple[str, Tier], EnergyProfile]] = {
    (name, tier): EnergyProfile(name, tier, tps_max, _STALL_MS[tier], _ALPHA[tier])
    for name, row in _TPS_MAX.items()
    for tier, tps_max in row.items()
}


def profile_for(name: str = "fnd-002/2", tier: Tier = Tier.MID) -> EnergyProfile:
    """The profile of that name for a tier. Raises ConfigError, whose hint names those there are."""
    try:
        return PROFILES[name, tier]
    except KeyError:
        raise ConfigError(
            f"there is no energy profile {name!r} for tier {str(tier)!r}",
            hint=f"profiles: {', '.join(_TPS_MAX)}; tiers: {', '.join(Tier)}",
        ) from None


def certainty(logprobs: Sequence[float] | None) -> float | None:
    """How sure the model was, in [0, 1], from the log probabilities of its K best candidates.

    M * (1 - H / ln K): H is the entropy of the K normalised to 1, M the mass they hold together;
    for K = 1 the probability itself. None (missing) without any, or if one is NaN or above 0.001.
    """
    if not logprobs:
        return None
    mass = weighted = 0.0
    for logprob in logprobs:
        if logprob <= 0.0:
            p = exp(logprob)
            mass += p
            weighted -= p * logprob
        elif logprob <= 0.001:  # rounding above 0
            mass += 1.0
        else:  # NaN too
            return None
    if not weighted >= 0.0:  # NaN, of 0 * inf; at -746 exp is 0 as well
        return certainty([max(logprob, -746.0) for logprob in logprobs])
    if len(logprobs) == 1 or mass == 0.0:
        return mass
    entropy = weighted / mass + log(mass)  # -sum(q * ln q) over q = p / mass
    sure = 1.0 - entropy / log(len(logprobs))
    if mass < 1.0:
        sure *= mass
    # An entropy that rounds to below 0 does so by less than the mass is below 1: no clamp at 1.
    return sure if sure > 0.0 else 0.0


def decayed(energy: float, lag_ns: int, half_life_ns: int) -> float:
    """`energy`, `lag_ns` after its decay began (before that, itself).

    Neighbouring nanoseconds differ by a part in 10**9, far above the rounding of exp2: so it falls
    as the lag grows in floats, too, to the last bit.
    """
    return energy * exp2(-lag_ns / half_life_ns) if lag_ns > 0 else energy


class EUMapper:
    """The energy of one session. One writer calls `token` and `end`; anyone may read the rest.

    About the last token: `energy` right after it, `delta_ns` since the one before, `tps`,
    `velocity`, `flow`, `stall_ns`, and `certainty`: None if it brought none, reused or not.
    """

    __slots__ = (
        "_fade_ns",
        "_first",
        "_half_ns",
        "_last_ns",
        "_reuse_ns",
        "_stall_ns",
        "_sure",
        "_sure_until",
        "_time",
        "_window",
        "certainty",
        "delta_ns",
        "energy",
        "falls_ns",
        "profile",
    )

    def __init__(self, profile: EnergyProfile) -> None:
        self.profile = profile
        self.energy = 0.0
        self.delta_ns = 0
        self.certainty: float | None = None
        self._stall_ns = profile.stall_ms * MS
        self._fade_ns = (profile.ceil_ms - profile.stall_ms) * MS
        self._half_ns = profile.half_life_ms * MS
        self._reuse_ns = profile.reuse_ms * MS
        # When the tokens of the last second came, session time: from _first on. A deque would take
        # 700 bytes at once.
        self._window: list[int] = []
        self._first = 0
        self._time = 0  # session time: the sum of the gaps; unlike the clock it never steps back
        self._last_ns: int | None = None  # the clock at the last token
        self.falls_ns = 0  # the clock when decay begins; `energy` holds until then
        self._sure = 0.0  # the last certainty
        self._sure_until = -1  # how long it serves, session time

    def token(self, now_ns: int, logprobs: Sequence[float] | None = None) -> float:
        """E right after a token that arrived at `now_ns`. Tokens of one read share a stamp.

        `logprobs` are the best K as received, or the chosen token's alone where there is no list.
        """
        profile = self.profile
        last_ns = self._last_ns
        delta = 0 if last_ns is None or now_ns < last_ns else now_ns - last_ns
        self._last_ns = now_ns
        self.delta_ns = delta
        self._time = time = self._time + delta
        window, first = self._window, self._first
        window.append(time)
        oldest = time - WINDOW_NS
        if window[first] <= oldest:
            while window[first] <= oldest:
                first += 1
            if 4 * first > len(window):  # not each time, for the rest has to move
                del window[:first]
                first = 0
            self._first = first
        tps = len(window) - first
        velocity = tps / profile.tps_max if tps < profile.tps_max else 1.0
        flow = self.flow if delta > self._stall_ns else 1.0
        self.certainty = sure = certainty(logprobs) if logprobs is not None else None
        if sure is not None:
            self._sure = sure
            self._sure_until = time + self._reuse_ns
            base = 0.5 * velocity + 0.3 * sure + 0.2 * flow
        elif time <= self._sure_until:
            base = 0.5 * velocity + 0.3 * self._sure + 0.2 * flow
        else:
            base = 0.7 * velocity + 0.3 * flow
        before = self.energy
        if now_ns > self.falls_ns:
            before = decayed(before, now_ns - self.falls_ns, self._half_ns)
        self.falls_ns = now_ns + self._stall_ns
        alpha = profile.alpha
        self.energy = energy = alpha * base + (1.0 - alpha) * before
        return energy

    def tokens(self, now_ns: int, read: Sequence[Sequence[float] | None]) -> list[float]:
        """E after each token of one read (at least one): to the last bit what `token` says one by one.

        No time passes between them: nothing decays, stalls or leaves the window.
        """
        energy = self.token(now_ns, read[0])
        energies = [energy]
        if len(read) == 1:
            return energies
        profile, time, window = self.profile, self._time, self._window
        alpha, tps_max, tps = profile.alpha, profile.tps_max, self.tps
        kept = 1.0 - alpha
        sure: float | None = None
        for logprobs in read[1:]:
            tps += 1
            velocity = tps / tps_max if tps < tps_max else 1.0
            sure = certainty(logprobs) if logprobs is not None else None
            if sure is not None:
                self._sure = sure
                self._sure_until = time + self._reuse_ns
                base = 0.5 * velocity + 0.3 * sure + 0.2
            elif time <= self._sure_until:
                base = 0.5 * velocity + 0.3 * self._sure + 0.2
            else:
                base = 0.7 * velocity + 0.3
            energy = alpha * base + kept * energy
            energies.append(energy)
        window.extend([time] * (len(read) - 1))
        self.delta_ns, self.certainty, self.energy = 0, sure, energy
        return energies

    @property
    def tps(self) -> int:
        """How many tokens arrived in the second up to the last one, that one included."""
        return len(self._window) - self._first

    @property
    def velocity(self) -> float:
        return min(self.tps / self.profile.tps_max, 1.0)

    @property
    def stall_ns(self) -> int:
        """How much longer than the stall limit the last gap was."""
        return max(self.delta_ns - self._stall_ns, 0)

    @property
    def flow(self) -> float:
        return 1.0 - min(self.stall_ns / self._fade_ns, 1.0)

    def at(self, now_ns: int) -> float:
        """E at `now_ns`, between tokens; 0 once it is below 1/512. Reads only."""
        energy = self.energy
        if now_ns > self.falls_ns:
            energy = decayed(energy, now_ns - self.falls_ns, self._half_ns)
        return energy if energy >= DRAINED_BELOW else 0.0

    def end(self, now_ns: int) -> None:
        """No more tokens: decay starts now, without waiting for a stall."""
        self.energy = decayed(self.energy, now_ns - self.falls_ns, self._half_ns)
        self.falls_ns = now_ns
