"""`tier`: what class of machine this is, why, and what may be used on it; measured, if that is wished.

Without `--measure` nothing is started or loaded. With it, memory is read for a moment, which says what a
model of a given size can reach on the CPU at most; then a real model writes, which says what it does reach.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final

import msgspec
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.cli.draw import LABEL
from ollama_adapter.cli.output import complain, console, harmless, print_json, print_table
from ollama_adapter.cli.status import look
from ollama_adapter.config import Config, Tier
from ollama_adapter.core.amounts import gib
from ollama_adapter.core.footprint import Facts, facts_of
from ollama_adapter.core.names import local_name, parse_name
from ollama_adapter.core.tiers import GIB, Hardware, TierVerdict, judge_tier, most_tps, tier_of
from ollama_adapter.errors import DaemonError
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings
from ollama_adapter.system.bandwidth import Bandwidth, measure
from ollama_adapter.system.hardware import hardware

TOKENS: Final = 128
PROMPT: Final = "Tell a long story about a lighthouse and the people who kept it."
SIZES: Final = (1, 2, 4, 8, 16)  # GiB
ADVISORY: Final = "adopted: others may use it, too, and for what they load the budget is advice"


class Measured(msgspec.Struct, frozen=True):
    """What was measured; without a `model` to be had, of the memory alone."""

    bandwidth: Bandwidth
    model: str = ""
    weights_bytes: int = 0
    tps: float | None = None


def tier(model: str, *, measured: bool, as_json: bool) -> Coroutine[Any, Any, None]:
    return _tier(settings.load_config(), model, measured or bool(model), as_json)


async def _tier(config: Config, model: str, wanted: bool, as_json: bool) -> None:
    machine = hardware()
    verdict = judge_tier(machine, config.pool)
    health, _ = await look(config, start=False)
    advisory = health.origin == ADOPTED
    measured = await _measure(config, machine, model) if wanted else None
    if as_json:
        print_json(_values(machine, verdict, advisory, measured))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style=LABEL)
    table.add_column(overflow="fold")
    rows = _rows(machine, verdict, advisory)
    if measured is not None:
        rows |= _measured_rows(verdict, measured)
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(harmless(value)))
    print_table(table)


# What is measured


async def _measure(config: Config, machine: Hardware, model: str) -> Measured:
    with _progress("reading memory") as tell:
        stop = threading.Event()
        work = asyncio.get_running_loop().run_in_executor(None, measure, machine.cores, stop, tell)
        try:
            bandwidth = await asyncio.shield(work)
        finally:
            stop.set()
    try:
        async with Orchestrator(config) as orchestrator:
            adapter = orchestrator.adapter
            chosen = await _choose(adapter, model)
            if chosen is None:
                complain("note", "no model but the demonstration is here: none was measured")
                return Measured(bandwidth)
            with _progress(f"{chosen.name} writes") as tell:
                tps = await _throughput(adapter, chosen.name, tell)
            return Measured(bandwidth, chosen.name, chosen.weights_bytes, tps)
    except DaemonError as error:
        if model:
            raise
        complain("note", f"no model was measured: {error}", error.hint)
        return Measured(bandwidth)


async def _choose(adapter: OllamaAdapter, model: str) -> Facts | None:
    """The model that is asked for; else the smallest one in memory, else on the disk, that writes."""
    on_disk = [facts_of(each) for each in await adapter.client.tags()]
    if model:
        key = local_name(model).key
        named = (each for each in on_disk if parse_name(each.name).key == key)
        return next(named, Facts(model))
    resident = {str(each.get("name", "")) for each in await adapter.client.ps()}
    real = [each for each in on_disk if _is_real(each)]
    found = [each for each in real if each.name in resident] or real
    return min(found, key=lambda each: each.weights_bytes, default=None)


def _is_real(facts: Facts) -> bool:
    return not (facts.remote or facts.embeds or "demonstration" in facts.families)


async def _throughput(
    adapter: OllamaAdapter, model: str, tell: Callable[[float], None]
) -> float | None:
    """Tokens per second of a model that is in memory; None where it wrote too little to say."""
    await adapter.pool.ensure_loaded(model)
    stream = adapter.generate_stream(
        model, PROMPT, num_predict=TOKENS, temperature=0, logprobs=False, private=True
    )
    async with stream:
        async for event in stream:
            tell((event.index + 1) / TOKENS)
    return stream.statistics.tps


@contextmanager
def _progress(what: str) -> Iterator[Callable[[float], None]]:
    """A bar on stderr, where somebody looks at it."""
    screen = console(stderr=True)
    columns = (TextColumn("{task.description}", markup=False), BarColumn())
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as bar:
        task = bar.add_task(harmless(what), total=1.0)
        yield lambda part: bar.update(task, completed=min(1.0, part))


# What is shown


def _rows(machine: Hardware, verdict: TierVerdict, advisory: bool) -> dict[str, str]:
    limits = verdict.limits
    budget = [f"{gib(limits.budget.ram)} of RAM"]
    if limits.budget.vram:
        budget.append(f"{gib(limits.budget.vram)} of the GPU's memory")
    return {
        "tier": verdict.tier.value,
        "why": verdict.reason.partition(": ")[2],
        "processors": str(machine.cores),
        "gpu": ", ".join(machine.gpus) or "none",
        "budget": " and ".join(budget),
        "largest model": gib(limits.model_bytes),
        "at work": f"at most {_models(limits.parallel)} at a time",
        "in memory": f"at most {_models(limits.resident)}",
        "expected": f"{_span(limits.tps)} tokens/s",
        "configured": ", ".join(f"pool.{each}" for each in verdict.overridden),
        "daemon": ADVISORY if advisory else "",
    }


def _models(count: int) -> str:
    return f"{count} {'model' if count == 1 else 'models'}"


def _span(tps: tuple[float, float | None]) -> str:
    return f"{tps[0]:g}–{tps[1]:g}" if tps[1] else f"{tps[0]:g} or more"


def _measured_rows(verdict: TierVerdict, measured: Measured) -> dict[str, str]:
    speed = measured.bandwidth.bytes_per_s
    most = ", ".join(f"{most_tps(speed, each * GIB):.1f} with {each} GiB" for each in SIZES)
    threads = measured.bandwidth.threads
    by = "1 thread" if threads == 1 else f"{threads} threads"
    rows = {
        "memory reads": f"{speed / GIB:.1f} GiB/s, with {by}",
        "on the cpu": f"a model can write at most so many tokens/s: {most}",
    }
    if measured.model:
        tps = f"{measured.tps:.1f} tokens/s" if measured.tps else "too little to tell how fast"
        rows["measured"] = f"{measured.model} ({gib(measured.weights_bytes)}) wrote {tps}"
    rows["verdict"] = f"{verdict.tier} by the size of memory; {_by_throughput(verdict, measured)}"
    return rows


def _by_throughput(verdict: TierVerdict, measured: Measured) -> str:
    if measured.tps is not None:
        return f"{_named(tier_of(measured.tps))} by what {measured.model} wrote"
    largest = verdict.limits.model_bytes
    most = most_tps(measured.bandwidth.bytes_per_s, largest)
    return f"at most {_named(tier_of(most))} by what the largest model ({gib(largest)}) can write on the CPU"


def _named(found: Tier | None) -> str:
    return found.value if found else "below low"


def _values(
    machine: Hardware, verdict: TierVerdict, advisory: bool, measured: Measured | None
) -> dict[str, Any]:
    limits = verdict.limits
    values = {
        "tier": verdict.tier,
        "detected": verdict.detected,
        "reason": verdict.reason,
        "overridden": verdict.overridden,
        "advisory": advisory,
        "budget": {"ram_bytes": limits.budget.ram, "vram_bytes": limits.budget.vram},
        "model_bytes": limits.model_bytes,
        "parallel_models": limits.parallel,
        "resident_models": limits.resident,
        "tps": limits.tps,
        "hardware": msgspec.structs.asdict(machine),
    }
    if measured is not None:
        speed = measured.bandwidth.bytes_per_s
        values["measured"] = {
            "bytes_per_s": speed,
            "threads": measured.bandwidth.threads,
            "most_tps": {f"{each} GiB": most_tps(speed, each * GIB) for each in SIZES},
            "model": measured.model,
            "weights_bytes": measured.weights_bytes,
            "tps": measured.tps,
            "tier": None if measured.tps is None else tier_of(measured.tps),
        }
    return values
