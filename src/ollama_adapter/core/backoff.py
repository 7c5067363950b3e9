"""How long to wait before the next try: exponential, with full jitter, capped, forgiven by a stable run.

Full jitter (a delay drawn evenly from nothing to the bound) keeps many applications that lost the same
daemon from coming back in step.
"""

from __future__ import annotations

import msgspec


class BackoffPolicy(msgspec.Struct, frozen=True):
    """Bounds double from `base_s` to `cap_s`; after `tries` failures in a row it is time to give up.

    A run of `stable_s` or longer makes up for all that failed before it.
    """

    base_s: float = 0.25
    cap_s: float = 30.0
    tries: int = 5
    stable_s: float = 30.0


class Backoff:
    """Counts failures in a row."""

    def __init__(self, policy: BackoffPolicy) -> None:
        self._policy = policy
        self.failures = 0

    def __repr__(self) -> str:
        return f"<Backoff {self.failures} of {self._policy.tries}>"

    def failed(self, ran_s: float = 0.0) -> None:
        """What was tried has ended, after it had run well for `ran_s`."""
        self.failures = 1 if ran_s >= self._policy.stable_s else self.failures + 1

    def reset(self) -> None:
        self.failures = 0

    @property
    def exhausted(self) -> bool:
        return self.failures >= self._policy.tries

    def delay_s(self, chance: float) -> float:
        """Seconds until the next try, for a `chance` drawn evenly from [0, 1)."""
        doublings = min(max(self.failures - 1, 0), 64)
        return chance * min(self._policy.cap_s, self._policy.base_s * 2.0**doublings)
