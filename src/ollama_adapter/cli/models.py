"""`models` and `rm`: what a daemon has on the disk.

A daemon that runs is asked; where none runs, one is started for the moment.
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ollama_adapter.adapter import OllamaAdapter
from ollama_adapter.cli.draw import DEMONSTRATION, LABEL
from ollama_adapter.cli.output import asked, complain, console, harmless, print_json, print_table
from ollama_adapter.config import Config, DaemonMode
from ollama_adapter.core.amounts import gib
from ollama_adapter.core.listing import is_for_ever
from ollama_adapter.core.names import is_tinydoc, local_name
from ollama_adapter.errors import AdapterError, ModelNotFound
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings

Work = Coroutine[Any, Any, None]
FOR_EVER: Final = "for ever"
ADVICE: Final = (
    "over budget is what does not fit into the budget (`ollama-adapter tier`), which is only advice: "
    "this daemon is not ours alone, and may load it all the same"
)


def models(*, as_json: bool) -> Work:
    return _models(settings.load_config(), as_json)


async def _models(config: Config, as_json: bool) -> None:
    async with Orchestrator(config) as orchestrator:
        found = await orchestrator.adapter.client.tags()
        for each in found:
            each |= await _in_memory(orchestrator.adapter, str(each.get("name", "")))
    if as_json:
        for each in found:
            print_json(each)
        return
    table = listing("NAME", "SIZE", "PARAMETERS", "QUANTISATION", "FAMILY", "MEMORY", "MODIFIED")
    for each in found:
        add_row(table, _model_row(each))
    spare = ("MODIFIED", "FAMILY", "PARAMETERS", "QUANTISATION")
    show(table, empty="no models here: ollama-adapter import FILE.gguf NAME adds one", spare=spare)
    if any(each["advisory"] and not each["fits"] for each in found):
        complain("note", ADVICE)
    if any(is_tinydoc(str(each.get("name", ""))) for each in found):
        complain("note", DEMONSTRATION)


async def _in_memory(adapter: OllamaAdapter, name: str) -> dict[str, Any]:
    """Whether a model is in memory, or would fit; each is None where that cannot be told."""
    try:
        plan = await adapter.pool.plan(name)
    except AdapterError as error:
        unknown = dict.fromkeys(("resident", "fits", "advisory", "needs_bytes"))
        return {**unknown, "reason": str(error)}
    return {
        "resident": plan.resident,
        "fits": plan.fits,
        "advisory": plan.advisory,
        "needs_bytes": plan.takes.total,
        "reason": plan.reason,
    }


def _model_row(model: Mapping[str, Any]) -> list[str]:
    details = model.get("details")
    about: Mapping[str, Any] = details if isinstance(details, dict) else {}
    memory = "–"
    if model["fits"] is not None:
        memory = f"{_verdict(model)}: {gib(model['needs_bytes'])}"
    return [
        str(model.get("name", "")),
        _bytes(model.get("size")),
        str(about.get("parameter_size") or "–"),
        str(about.get("quantization_level") or "–"),
        str(about.get("family") or "–"),
        memory,
        instant(model.get("modified_at")),
    ]


def _verdict(model: Mapping[str, Any]) -> str:
    if model["resident"]:
        return "in use"
    if model["fits"]:
        return "fits"
    return "over budget" if model["advisory"] else "too large"


def adopting(config: Config) -> Config:
    """The same settings, with no daemon started."""
    return replace(config, daemon=replace(config.daemon, mode=DaemonMode.ADOPT))


def remove(names: Sequence[str], *, yes: bool, as_json: bool) -> Work:
    for name in names:
        local_name(name)  # one that cannot be is said before any is removed
    config = settings.load_config()
    if not yes and not as_json and sys.stdin.isatty() and not _confirmed(names):
        return _nothing()
    return _remove(config, names, as_json)


def _confirmed(names: Sequence[str]) -> bool:
    return asked(f"remove {', '.join(names)} from the disk?")


async def _nothing() -> None:
    complain("note", "nothing was removed")


async def _remove(config: Config, names: Iterable[str], as_json: bool) -> None:
    """Every one that can be; the first failure is raised at the end."""
    failure: AdapterError | None = None
    async with Orchestrator(config) as orchestrator:
        for name in names:
            try:
                await orchestrator.adapter.client.delete(name)
            except AdapterError as error:
                if isinstance(error, ModelNotFound):
                    error.hint = "`ollama-adapter models` lists what is here"
                if failure is not None:
                    complain("error", str(error), error.hint)
                failure = failure or error
                continue
            if as_json:
                print_json({"removed": name})
            else:
                console().print(harmless(f"removed {name}"))
    if failure is not None:
        raise failure


def listing(*headings: str) -> Table:
    """A table of words, wide as they are."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style=LABEL, pad_edge=False)
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=False)
    return table


def add_row(table: Table, cells: Sequence[str]) -> None:
    table.add_row(*(Text(harmless(cell)) for cell in cells))


def show(table: Table, *, empty: str, spare: Sequence[str] = ()) -> None:
    """`spare` are the columns that are left out where the terminal is too narrow, the first one first."""
    if table.row_count:
        where = console()
        drop_columns(table, where, spare)
        print_table(table, where)
    else:
        complain("note", empty)


def drop_columns(table: Table, where: Console, spare: Sequence[str]) -> None:
    """Until the table is no wider than the console, and its names can be read and copied."""
    boundless = where.options.update(width=10_000)
    for heading in spare:
        if where.measure(table, options=boundless).maximum <= where.width:
            break
        table.columns = [each for each in table.columns if each.header != heading]


def _bytes(value: object) -> str:
    return gib(value) if isinstance(value, int) and value >= 0 else "–"


def instant(value: object) -> str:
    """A time of the daemon's in this place's own."""
    try:
        stamp = datetime.fromisoformat(str(value).replace("Z", "+00:00"))
        if is_for_ever(value):
            return FOR_EVER
        if stamp.year < 2:
            return "–"
        stamp = stamp if stamp.tzinfo else stamp.replace(tzinfo=UTC)
        return stamp.astimezone().strftime("%Y-%m-%d %H:%M")
    except (ValueError, OverflowError):
        return "–"
