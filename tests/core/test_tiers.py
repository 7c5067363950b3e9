"""Which tier a machine is, and what may be used on it."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ollama_adapter.config import PoolConfig, Tier
from ollama_adapter.core.guarantees import TPS_FLOOR
from ollama_adapter.core.tiers import GIB, SHARE, TIERS, Hardware, judge_tier, most_tps, tier_of
from ollama_adapter.errors import ConfigError
from ollama_adapter.events import Footprint


def machine(ram: float, vram: float = 0.0, **more: Any) -> Hardware:
    return Hardware(int(ram * GIB), int(vram * GIB), **more)


def test_the_table() -> None:
    """Of the issue: RAM and VRAM, largest model, in parallel, resident, tokens/s."""
    assert {
        tier.value: (
            each.budget.ram // GIB,
            each.budget.vram // GIB,
            each.model_bytes // GIB,
            each.parallel,
            each.resident,
            each.tps,
        )
        for tier, each in TIERS.items()
    } == {
        "low": (8, 6, 4, 2, 4, (5.0, 15.0)),
        "mid": (16, 12, 8, 4, 6, (15.0, 30.0)),
        "high": (32, 24, 16, 6, 8, (30.0, None)),
    }
    assert {tier: each.tps[0] for tier, each in TIERS.items()} == TPS_FLOOR


@pytest.mark.parametrize(
    ("hardware", "tier", "budget"),
    [
        (machine(4), Tier.LOW, (2.8, 0)),
        (machine(8), Tier.LOW, (5.6, 0)),
        (machine(16), Tier.LOW, (8, 0)),
        (machine(22.8), Tier.LOW, (8, 0)),
        (machine(22.9), Tier.MID, (16, 0)),
        (machine(24), Tier.MID, (16, 0)),
        (machine(45.7), Tier.MID, (16, 0)),
        (machine(64), Tier.HIGH, (32, 0)),
        (machine(64, 8), Tier.LOW, (8, 5.6)),
        (machine(64, 16), Tier.LOW, (8, 6)),
        (machine(64, 17.2), Tier.MID, (16, 12)),
        (machine(16, 24), Tier.MID, (11.2, 12)),
        (machine(64, 48), Tier.HIGH, (32, 24)),
        (machine(64, 64, unified=True), Tier.HIGH, (32, 0)),
    ],
)
def test_a_machine(hardware: Hardware, tier: Tier, budget: tuple[float, float]) -> None:
    verdict = judge_tier(hardware, PoolConfig())
    assert (verdict.tier, verdict.detected, verdict.overridden) == (tier, tier, ())
    assert verdict.limits.budget == Footprint(int(budget[0] * GIB), int(budget[1] * GIB))
    assert verdict.has_gpu is (hardware.vram_bytes > 0)
    assert (verdict.limits.parallel, verdict.limits.resident) == (
        TIERS[tier].parallel,
        TIERS[tier].resident,
    )


@pytest.mark.parametrize(
    ("hardware", "config", "reason"),
    [
        (machine(24), {}, "mid: 24.0 GiB of RAM and no GPU; 16.0 GiB may be used"),
        (
            machine(64, 48, gpus=("A", "B")),
            {},
            "high: 48.0 GiB on A and B, and 64.0 GiB of RAM; 24.0 GiB there and 32.0 GiB here may be "
            "used",
        ),
        (
            machine(0, 24),
            {},
            "mid: 24.0 GiB on a GPU, and an unknown amount of RAM; 12.0 GiB there and 16.0 GiB here "
            "may be used",
        ),
        (
            machine(24, gpus=("A",)),
            {},
            "mid: an unknown amount on A, and 24.0 GiB of RAM; 12.0 GiB there and 16.0 GiB here may be "
            "used",
        ),
        (
            machine(32, 32, unified=True),
            {},
            "mid: 32.0 GiB of RAM, in which the GPU works, too; 16.0 GiB may be used",
        ),
        (machine(0), {}, "low: an unknown amount of RAM and no GPU; 8.0 GiB may be used"),
        (
            machine(24),
            {"tier": "low"},
            "low, as configured, not mid: 24.0 GiB of RAM and no GPU; 8.0 GiB may be used",
        ),
        (
            machine(20),
            {"ram_bytes": 15 * GIB, "vram_bytes": GIB},
            "low: 20.0 GiB of RAM and no GPU; 14.0 GiB may be used; pool.ram_bytes asks for 15.0 GiB, "
            "more than 70 % of what is there; pool.vram_bytes is of no use here",
        ),
    ],
)
def test_the_reason(hardware: Hardware, config: dict[str, Any], reason: str) -> None:
    verdict = judge_tier(hardware, PoolConfig(**config))
    assert verdict.reason == reason
    assert reason in repr(verdict)


def test_what_is_configured_takes_the_place_of_the_tables() -> None:
    config = PoolConfig(
        tier=Tier.HIGH,
        ram_bytes=10 * GIB,
        vram_bytes=5 * GIB,
        model_bytes=3 * GIB,
        parallel_models=1,
        resident_models=2,
    )
    verdict = judge_tier(machine(64, 24), config)
    limits = verdict.limits
    assert (verdict.tier, verdict.detected) == (Tier.HIGH, Tier.MID)
    assert limits.budget == Footprint(10 * GIB, 5 * GIB)
    assert (limits.model_bytes, limits.parallel, limits.resident) == (3 * GIB, 1, 2)
    assert limits.tps == (30.0, None)
    assert verdict.overridden == (
        "tier", "ram_bytes", "vram_bytes", "model_bytes", "parallel_models", "resident_models",
    )  # fmt: skip


def test_of_unknown_memory_what_is_configured_holds() -> None:
    verdict = judge_tier(Hardware(0), PoolConfig(ram_bytes=100 * GIB))
    assert verdict.limits.budget == Footprint(100 * GIB, 0)


@pytest.mark.parametrize("name", ["ram_bytes", "vram_bytes", "model_bytes", "resident_models"])
@pytest.mark.parametrize("value", [0, -1])
def test_a_budget_of_nothing(name: str, value: int) -> None:
    nothing: dict[str, Any] = {name: value}
    with pytest.raises(ConfigError, match=f"{name} is {value}, and must be above 0") as caught:
        PoolConfig(**nothing)
    assert "tier" in caught.value.hint


def test_a_tier_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match="tier cannot be 'huge'") as caught:
        PoolConfig(tier="huge")  # type: ignore[arg-type]
    assert caught.value.hint.startswith("expected: low, mid, high")


@pytest.mark.parametrize(
    ("tps", "tier"),
    [
        *((0.0, None), (4.9, None), (5.0, Tier.LOW), (15.0, Tier.MID)),
        *((29.9, Tier.MID), (30.0, Tier.HIGH), (1e6, Tier.HIGH)),
    ],
)
def test_what_a_throughput_belongs_to(tps: float, tier: Tier | None) -> None:
    assert tier_of(tps) is tier


def test_what_memory_lets_a_model_reach() -> None:
    assert most_tps(20e9, 4_000_000_000) == 5.0
    assert most_tps(20e9, 0) == 20e9


sizes = st.integers(0, 1 << 42)
overrides = st.none() | st.integers(1, 1 << 42)


@given(
    ram=sizes,
    vram=sizes,
    unified=st.booleans(),
    tier=st.none() | st.sampled_from(Tier),
    ram_bytes=overrides,
    vram_bytes=overrides,
    model_bytes=overrides,
)
def test_no_more_than_seventy_in_a_hundred(
    ram: int,
    vram: int,
    unified: bool,
    tier: Tier | None,
    ram_bytes: int | None,
    vram_bytes: int | None,
    model_bytes: int | None,
) -> None:
    config = PoolConfig(
        tier=tier, ram_bytes=ram_bytes, vram_bytes=vram_bytes, model_bytes=model_bytes
    )
    verdict = judge_tier(Hardware(ram, vram, unified=unified), config)
    budget = verdict.limits.budget
    assert budget.ram <= (math.floor(ram * SHARE) if ram else budget.ram)
    assert budget.vram <= vram * SHARE
    assert 0 <= verdict.limits.model_bytes <= budget.total


@given(ram=st.integers(1, 1 << 42), more=sizes)
def test_more_memory_is_no_lower_tier(ram: int, more: int) -> None:
    order = list(Tier)
    least = judge_tier(Hardware(ram), PoolConfig()).tier
    assert order.index(judge_tier(Hardware(ram + more), PoolConfig()).tier) >= order.index(least)
