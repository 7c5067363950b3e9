"""`plan`: what loading a model would take and do to the others, and why. Nothing is loaded."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine, Mapping
from typing import Any, Final

from click.exceptions import Exit
from rich.table import Table
from rich.text import Text

from ollama_adapter.cli import asking
from ollama_adapter.cli.draw import LABEL
from ollama_adapter.cli.models import adopting
from ollama_adapter.cli.output import harmless, print_json, print_table
from ollama_adapter.config import Config, DaemonMode
from ollama_adapter.core.amounts import budget, gib
from ollama_adapter.core.names import local_name
from ollama_adapter.errors import DaemonNotFound, InvalidRequest
from ollama_adapter.events import Footprint, LoadPlan
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings

DOES_NOT_FIT: Final = 1


def plan(model: str, num_ctx: int | None, *, as_json: bool) -> Coroutine[Any, Any, None]:
    local_name(model)
    if num_ctx is not None and num_ctx <= 0:
        raise InvalidRequest(f"--num-ctx {num_ctx} is no size", hint="it is a number of tokens")
    return _plan(settings.load_config(), model, num_ctx, as_json)


async def _plan(config: Config, model: str, num_ctx: int | None, as_json: bool) -> None:
    if config.daemon.mode is DaemonMode.AUTO:
        try:
            found, after = await _ask(adopting(config), model, num_ctx)
        except DaemonNotFound:  # none runs: one is started for the moment
            found, after = await _ask(await asking.with_daemon_for(model, config), model, num_ctx)
    else:
        found, after = await _ask(config, model, num_ctx)
    if as_json:
        print_json({**dataclasses.asdict(found), "after": dataclasses.asdict(after)})
    else:
        print_table(plan_table(found, after, num_ctx or 0))
    if not found.fits:
        raise Exit(DOES_NOT_FIT)


async def _ask(config: Config, model: str, num_ctx: int | None) -> tuple[LoadPlan, Footprint]:
    """The plan, and what is taken once it has been carried out."""
    async with Orchestrator(config) as orchestrator:
        pool = orchestrator.adapter.pool
        found = await pool.plan(model, num_ctx)
        there = {each.model: each.footprint for each in pool.residents()}
    return found, after_load(found, there)


def after_load(found: LoadPlan, there: Mapping[str, Footprint]) -> Footprint:
    """What is taken once the plan has been carried out; `there` is what each model in memory takes."""
    if found.resident or found.refused:
        return found.used
    gone = {name: there.get(name, Footprint()) for name in found.waits_for}
    # with other options the daemon puts it in its own place
    gone[found.model] = there.get(found.model, Footprint())
    gone |= {each.model: each.frees for each in found.evict}
    return found.used + found.takes - sum(gone.values(), Footprint())


def plan_table(found: LoadPlan, after: Footprint, asked: int = 0) -> Table:
    """The plan in words, with its reasons; `asked` is the num_ctx that somebody wants (0: the usual one)."""
    total = found.weights_bytes + found.kv_bytes + found.overhead_bytes
    expected = found.expected_s
    evicts = [f"{each.model} ({gib(each.frees.total)}): {each.reason}" for each in found.evict]
    rows = {
        "model": found.model,
        "context": f"{found.num_ctx} tokens: it was made for no more than that"
        if asked > found.num_ctx
        else "",
        "fits": f"{_verdict(found)}: {found.reason}",
        "needs": (
            f"{gib(total)}: weights {gib(found.weights_bytes)}, cache of {found.num_ctx} tokens "
            f"{gib(found.kv_bytes)}, overhead {gib(found.overhead_bytes)}"
        ),
        "goes to": "" if found.refused else budget(found.takes),
        "in use before": f"{budget(found.used)}, of a budget of {budget(found.budget)}",
        "and after": "" if found.refused else budget(after),
        "evicts": "\n".join(evicts),
        "waits for": ", ".join(found.waits_for),
        "load takes": "" if expected is None or found.resident else f"about {expected:.1f} s",
        "note": "the budget is only advice: this daemon is not ours alone" * found.advisory,
    }
    table = Table.grid(padding=(0, 2))
    table.add_column(style=LABEL)
    table.add_column(overflow="fold")
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(harmless(value)))
    return table


def _verdict(found: LoadPlan) -> str:
    if found.fits:
        return "yes"
    return "no" if found.refused else "not within the budget, which is only advice here"
