"""What the pool publishes: how far a load is, what changed in memory, and its plans with their reasons."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


@dataclass(frozen=True, slots=True)
class Footprint:
    """Memory, in bytes: of the machine, and of its GPUs."""

    ram: int = 0
    vram: int = 0

    @property
    def total(self) -> int:
        return self.ram + self.vram

    def __add__(self, other: Footprint) -> Footprint:
        return Footprint(self.ram + other.ram, self.vram + other.vram)

    def __sub__(self, other: Footprint) -> Footprint:
        return Footprint(self.ram - other.ram, self.vram - other.vram)

    def fits(self, room: Footprint) -> bool:
        return self.ram <= room.ram and self.vram <= room.vram


class LoadPhase(StrEnum):
    """How far a model is on its way into memory."""

    QUEUED = "queued"
    PULLING = "pulling"
    LOADING = "loading"
    READY = "ready"


@dataclass(frozen=True, slots=True)
class LoadProgress:
    """One step of a model's way into memory, for somebody who waits.

    `position` is the place in the queue, 1 for the next one; `done_bytes` of `total_bytes` have been pulled;
    `expected_s` is how long the whole load is likely to take (None: nothing is known yet).
    """

    model: str
    phase: LoadPhase
    position: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    elapsed_s: float = 0.0
    expected_s: float | None = None


class PullStage(StrEnum):
    """How far a download is."""

    WAITING = "waiting for another pull of this model"
    ASKING = "asking the registry"
    FETCHING = "downloading"
    CHECKING = "checking"
    DONE = "done"


@dataclass(frozen=True, slots=True)
class PullProgress(LoadProgress):
    """One step of a download: all files of the model as one total, which never goes back.

    `host` sends at this moment, `received_bytes` have come over the network in this pull (`done_bytes` counts
    what was there before, too); `note` is why something is tried again.
    """

    stage: PullStage = PullStage.FETCHING
    bytes_per_s: float = 0.0
    remaining_s: float | None = None
    received_bytes: int = 0
    host: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class PullOffer:
    """What a pull would do, for whoever is asked for consent: nothing of it has been downloaded yet.

    The bytes are 0 where they are not known beforehand: `by` "the daemon", which then does it by itself.
    """

    model: str
    registry: str
    total_bytes: int
    missing_bytes: int
    store: str
    by: str = "ollama-adapter"


@dataclass(frozen=True, slots=True)
class HostTraffic:
    """What went to a host of the network and came from it, in bytes."""

    host: str
    sent_bytes: int
    received_bytes: int


@dataclass(frozen=True, slots=True)
class PullReceipt:
    """What a pull has done: every host that was talked to, and every byte.

    `by` is "ollama-adapter", or "the daemon": then Ollama itself has downloaded, and its hosts are not known.
    """

    model: str
    by: str
    total_bytes: int
    fetched_bytes: int
    elapsed_s: float
    hosts: tuple[HostTraffic, ...] = ()
    refused: tuple[str, ...] = ()
    sandbox: str = ""


@dataclass(frozen=True, slots=True)
class ResidentModel:
    """A model in memory, as far as the pool knows. `users` is how many requests of ours work with it.

    `foreign`: this adapter has not loaded it. `until_ns` is when its keep-alive ends, on the monotonic clock,
    unless it is used before; 0: not known.
    """

    model: str
    footprint: Footprint
    num_ctx: int
    users: int
    pinned: bool
    foreign: bool
    last_used_ns: int
    until_ns: int


class Change(StrEnum):
    """What has become of a model in memory."""

    LOADED = "loaded"
    LOADED_ELSEWHERE = "loaded by somebody else"
    EVICTED = "evicted"
    UNLOADED = "unloaded"
    EXPIRED = "its time was up"
    UNLOADED_ELSEWHERE = "unloaded by somebody else"
    FELL_BACK_TO_CPU = "fell back to the CPU"
    GREW = "grew"


@dataclass(frozen=True, slots=True)
class ResidencyChange:
    """A model's place in memory has changed: `footprint` is what it takes now (0: it is gone)."""

    model: str
    change: Change
    footprint: Footprint
    reason: str
    monotonic_ns: int


@dataclass(frozen=True, slots=True)
class Eviction:
    """A model to unload, what that frees, and why it is this one."""

    model: str
    frees: Footprint
    reason: str


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What loading a model takes, and does to the others; nothing has been done yet.

    `fits`: it can be in memory within the budget, at once or after `waits_for` have become idle; else
    `reason` says why not, and it is `refused`, but where the budget is advice (`advisory`).
    The need is `weights_bytes` + `kv_bytes` (for `num_ctx` tokens) + `overhead_bytes`, which go to `takes`.
    `used` is what is taken before, of `budget`. `expected_s` is the likely time, None where nothing is known.
    `advisory`: others use this daemon, too, and the budget binds nobody.
    """

    model: str
    fits: bool
    reason: str
    resident: bool
    num_ctx: int
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    takes: Footprint
    used: Footprint
    budget: Footprint
    evict: tuple[Eviction, ...] = ()
    waits_for: tuple[str, ...] = ()
    expected_s: float | None = None
    advisory: bool = False

    @property
    def refused(self) -> bool:
        """The pool does not load it."""
        return not self.fits and not self.advisory


@dataclass(frozen=True, slots=True)
class Substitution:
    """Another model answered: what was `asked`, which one `served`, and why."""

    asked: str
    served: str
    reason: str
