"""Which models are kept in memory, within which budget, and what happens where one cannot be had."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from ollama_adapter.conversion import not_negative, positive, typed


class Tier(StrEnum):
    """A class of machine: what throughput to expect and how much memory to use (docs/models.md)."""

    LOW = "low"
    MID = "mid"
    HIGH = "high"


class Reloading(StrEnum):
    """What becomes of a request whose options would force the model to be loaded anew.

    KEEP sends it with the options that the model has, and says so; REFUSE raises InvalidRequest; ALLOW
    loads the model anew.
    """

    KEEP = "keep"
    REFUSE = "refuse"
    ALLOW = "allow"


class Pulling(StrEnum):
    """Whether a model that is missing may be downloaded without being asked once more."""

    NEVER = "never"
    ALWAYS = "always"


@dataclass(frozen=True, slots=True)
class PoolConfig:
    keep_alive: str | float = "5m"
    """How long a model stays in memory after its last use; sent with every request."""
    tier: Tier | None = None
    """Which class of machine this is; None: what its memory says."""
    ram_bytes: int | None = None
    """Budget for models in RAM; None: the tier's, and at most 70 % of what there is."""
    vram_bytes: int | None = None
    """The same for the memory of GPUs."""
    model_bytes: int | None = None
    """The largest model that may be loaded; None: the tier's."""
    parallel_models: int | None = None
    """How many models may work at once; None: the tier's."""
    resident_models: int | None = None
    """How many may be in memory; None: the tier's."""
    pinned: tuple[str, ...] = ()
    """Models that stay in memory once they are there."""
    cooldown_s: float = 30.0
    """For how long after its last use a model gives its place only if no other one can."""
    reloading: Reloading = Reloading.KEEP
    """What becomes of a request whose options would force a reload."""
    substitute: bool = True
    """Whether another model may answer for one that cannot be had."""
    pulling: Pulling = Pulling.NEVER
    """Whether a model that is missing may be downloaded."""
    registries: tuple[str, ...] = ()
    """Hosts that models may be pulled from, besides Ollama's registry."""
    queue_length: int = 64
    """How many requests may wait for memory or for a place to run."""
    queue_s: float = 600.0
    """How long one may wait there."""
    load_s: float = 600.0
    """How long a load may make no progress."""
    watch_s: float = 5.0
    """How often the daemon is asked what is in memory, while something should be; 0: never."""

    def __post_init__(self) -> None:
        typed(self)
        optional = (
            "ram_bytes",
            "vram_bytes",
            "model_bytes",
            "parallel_models",
            "resident_models",
        )
        given = [each for each in optional if getattr(self, each) is not None]
        positive(self, "queue_length", "queue_s", "load_s")
        positive(
            self, *given, hint="left out, it is what the machine's tier says: `ollama-adapter tier`"
        )
        not_negative(self, "cooldown_s", "watch_s")
