"""What is published of the daemon's state and of the promises: which were kept, and why one was not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ADOPTED: Final = "adopted"
"""The origin of a daemon that somebody else started: not ours to stop, nor alone ours to fill."""


@dataclass(frozen=True, slots=True)
class Guarantee:
    """One promise, kept or not: `measured` against `limit`, in `unit`, and the cause of a miss.

    `met` is None where the session gives nothing to measure (no second token, no model loaded).
    """

    name: str
    met: bool | None
    measured: float | None
    limit: float
    unit: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a promise has been kept so far: in how many sessions it was `met` and `missed`, and the latest.

    The adapter's, since it was made; `latest` is None as long as no session gave anything to measure.
    """

    name: str
    limit: float
    unit: str
    met: int = 0
    missed: int = 0
    latest: Guarantee | None = None


@dataclass(frozen=True, slots=True)
class DaemonChange:
    """The daemon has gone into another state, and why ("" where nothing went wrong)."""

    state: str
    reason: str
    monotonic_ns: int


@dataclass(frozen=True, slots=True)
class Health:
    """What is known of the daemon. `origin` is adopted, spawned or embedded; "" when there is none.

    `guarantees`: what this adapter has kept of its promises so far.
    """

    ready: bool
    state: str
    origin: str = ""
    address: str = ""
    version: str = ""
    pid: int | None = None
    sandbox: str = ""
    missing: tuple[str, ...] = ()  # what this daemon is too old for
    reason: str = ""  # why it is not ready
    guarantees: tuple[Standing, ...] = ()
