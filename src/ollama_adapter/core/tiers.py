"""The classes of machines, what each may use and is expected to reach, and which one a machine is.

The budget is the tier's or 70 % of what is physically there, whichever is less: the rest is for whatever else
runs. What is configured takes the place of the table's. The verdict carries its reason, since it decides
whether a model may be loaded at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ollama_adapter.config import Tier
from ollama_adapter.events import Footprint

GIB: Final = 1 << 30
SHARE: Final = 0.7
"""Of the memory that is physically there."""


@dataclass(frozen=True, slots=True)
class Hardware:
    """What a machine has: bytes of memory, and processors."""

    ram_bytes: int
    vram_bytes: int = 0
    cores: int = 1
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tier may use: bytes, and numbers of models; and the throughput expected of it, in tokens/s."""

    budget: Footprint
    model_bytes: int
    parallel: int
    resident: int
    tps: tuple[float, float | None]


TIERS: Final[dict[Tier, Limits]] = {
    Tier.LOW: Limits(Footprint(8 * GIB, 6 * GIB), 4 * GIB, 2, 4, (5.0, 15.0)),
    Tier.MID: Limits(Footprint(16 * GIB, 12 * GIB), 8 * GIB, 4, 6, (15.0, 30.0)),
    Tier.HIGH: Limits(Footprint(32 * GIB, 24 * GIB), 16 * GIB, 6, 8, (30.0, None)),
}


@dataclass(frozen=True, slots=True)
class TierVerdict:
    """Which tier a machine is, why, and the limits that hold on it."""

    tier: Tier
    limits: Limits
    reason: str
