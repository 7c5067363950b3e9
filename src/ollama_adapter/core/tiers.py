"""The classes of machines, what each may use and is expected to reach, and which one a machine is.

The tier is the highest whose budget is there: in the memory of the GPU where there is one, else in RAM. The
budget is the tier's or 70 % of what is physically there, whichever is less: the rest is for whatever else
runs. What is configured takes the place of the table's, but not of the 70 %. The verdict carries its reason,
since it decides whether a model may be loaded at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import msgspec

from ollama_adapter.config import PoolConfig, Tier
from ollama_adapter.core.amounts import gib
from ollama_adapter.events import Footprint

GIB: Final = 1 << 30
SHARE: Final = 0.7
"""Of the memory that is physically there."""


class Hardware(msgspec.Struct, frozen=True):
    """What a machine has: bytes of memory, 0 where that is unknown, and processors.

    `unified`: the GPU works in the machine's own RAM, and all that it takes is taken from there.
    """

    ram_bytes: int
    vram_bytes: int = 0
    cores: int = 1
    gpus: tuple[str, ...] = ()
    unified: bool = False


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


_OVERRIDES: Final = (
    "tier", "ram_bytes", "vram_bytes", "model_bytes", "parallel_models", "resident_models",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class TierVerdict:
    """Which tier a machine is, why, and the limits that hold on it.

    `detected` is what its memory says; `overridden` names the settings that say otherwise. Where `unified`,
    what a daemon reports as the GPU's memory counts as RAM.
    """

    tier: Tier
    limits: Limits
    reason: str
    detected: Tier = Tier.LOW
    overridden: tuple[str, ...] = ()
    unified: bool = False

    @property
    def has_gpu(self) -> bool:
        return self.unified or self.limits.budget.vram > 0

    def __repr__(self) -> str:
        return f"<TierVerdict {self.reason}>"


def judge_tier(hardware: Hardware, config: PoolConfig) -> TierVerdict:
    """The tier of a machine, with what is configured in the place of what was detected."""
    detected = _detect(hardware)
    tier = config.tier or detected
    table = TIERS[tier]
    budget = Footprint(
        _cut(config.ram_bytes or table.budget.ram, hardware.ram_bytes),
        _cut(config.vram_bytes or table.budget.vram, hardware.vram_bytes)
        if _has_gpu(hardware)
        else 0,
    )
    limits = Limits(
        budget=budget,
        model_bytes=min(config.model_bytes or table.model_bytes, budget.total),
        parallel=config.parallel_models or table.parallel,
        resident=config.resident_models or table.resident,
        tps=table.tps,
    )
    overridden = tuple(each for each in _OVERRIDES if getattr(config, each) is not None)
    words = [
        f"{tier}, as configured, not {detected}" if config.tier else str(tier),
        _in_words(hardware, budget),
        *_cuts(hardware, config),
    ]
    reason = f"{words[0]}: {'; '.join(words[1:])}"
    return TierVerdict(tier, limits, reason, detected, overridden, hardware.unified)


def tier_of(tps: float) -> Tier | None:
    """The tier that a throughput belongs to, in tokens/s; None where it is below the lowest."""
    reached = [tier for tier, limits in TIERS.items() if tps >= limits.tps[0]]
    return reached[-1] if reached else None


def most_tps(bytes_per_s: float, weights_bytes: int) -> float:
    """What a model can reach at most, in tokens/s: for each token its weights are read once.

    Of a mixture of experts only a part is, so it may be faster.
    """
    return bytes_per_s / max(1, weights_bytes)


def _has_gpu(hardware: Hardware) -> bool:
    """One with memory of its own, known or not."""
    return bool(hardware.vram_bytes or hardware.gpus) and not hardware.unified


def _detect(hardware: Hardware) -> Tier:
    there, of = hardware.ram_bytes, "ram"
    if _has_gpu(hardware) and hardware.vram_bytes:
        there, of = hardware.vram_bytes, "vram"
    enough = [tier for tier, limits in TIERS.items() if there * SHARE >= getattr(limits.budget, of)]
    return enough[-1] if enough else Tier.LOW


def _cut(wanted: int, physical: int) -> int:
    """70 % of what is there is the most; of what is unknown, nothing can be said."""
    return min(wanted, int(physical * SHARE)) if physical else wanted


def _in_words(hardware: Hardware, budget: Footprint) -> str:
    ram = f"{gib(hardware.ram_bytes)} of RAM" if hardware.ram_bytes else "an unknown amount of RAM"
    if hardware.unified:
        return f"{ram}, in which the GPU works, too; {gib(budget.ram)} may be used"
    if not _has_gpu(hardware):
        return f"{ram} and no GPU; {gib(budget.ram)} may be used"
    gpus = " and ".join(hardware.gpus) or "a GPU"
    vram = gib(hardware.vram_bytes) if hardware.vram_bytes else "an unknown amount"
    return (
        f"{vram} on {gpus}, and {ram}; "
        f"{gib(budget.vram)} there and {gib(budget.ram)} here may be used"
    )


def _cuts(hardware: Hardware, config: PoolConfig) -> list[str]:
    """What was configured and is more than may be used."""
    words = []
    for name in ("ram_bytes", "vram_bytes"):
        wanted, physical = getattr(config, name), getattr(hardware, name)
        if wanted and physical and wanted > physical * SHARE:
            words.append(f"pool.{name} asks for {gib(wanted)}, more than 70 % of what is there")
    if config.vram_bytes and not _has_gpu(hardware):
        words.append("pool.vram_bytes is of no use here")
    return words
