"""`status`: the daemon that runs, the one that would be started, and where things are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Coroutine
from typing import Any

from click.exceptions import Exit
from rich.table import Table
from rich.text import Text

from ollama_adapter.cli.asking import default_model
from ollama_adapter.cli.draw import LABEL, standing
from ollama_adapter.cli.models import adopting
from ollama_adapter.cli.output import harmless, print_json, print_table
from ollama_adapter.cli.wording import in_the_commands_words
from ollama_adapter.config import Config, DaemonMode
from ollama_adapter.errors import AdapterError, DaemonError, DaemonNotFound
from ollama_adapter.events import Health
from ollama_adapter.events.health import ADOPTED
from ollama_adapter.orchestrator import Orchestrator
from ollama_adapter.system import settings
from ollama_adapter.system.launch import remedy
from ollama_adapter.system.obstacles import obstacle


def status(*, start: bool, as_json: bool) -> Coroutine[Any, Any, None]:
    return _status(settings.load_config(), start, as_json)


async def _status(config: Config, start: bool, as_json: bool) -> None:
    health, problem = await look(config, start=start)
    plan = _plan(config, adopted=health.origin == ADOPTED)
    against = None if health.ready or not plan else obstacle(config.daemon)
    if against is not None:
        plan, problem = "", str(against)
    file = settings.settings_file()
    places = {
        "models_dir": str(settings.models_dir(config.daemon)),
        "settings_file": str(file) if file.exists() else "",
        "default_model": default_model(config),
    }
    if as_json:
        print_json({**dataclasses.asdict(health), "problem": problem, "plan": plan, **places})
    else:
        _show(health, problem, _next(plan, against, config.daemon.mode), places)
    if not health.ready and not plan:
        raise Exit(1)


async def look(config: Config, *, start: bool) -> tuple[Health, str]:
    """What runs, without starting anything unless told to; and why it cannot be used."""
    address = f"{config.daemon.host}:{config.daemon.port}"
    none = Health(ready=False, state="stopped", address=address)
    if not start and config.daemon.mode not in (DaemonMode.AUTO, DaemonMode.ADOPT):
        return none, ""
    try:
        async with Orchestrator(config if start else adopting(config)) as orchestrator:
            return await orchestrator.adapter.health(), ""
    except DaemonNotFound:
        if start:
            raise
        return none, ""
    except DaemonError as error:
        if start:
            raise
        return none, str(error)


def _plan(config: Config, *, adopted: bool) -> str:
    """What the next command would use; "" for nothing."""
    mode = config.daemon.mode
    if adopted:
        return "use the daemon that runs"
    if mode is DaemonMode.ADOPT:
        return ""
    ollama = settings.find_ollama(config.daemon)
    if ollama and mode is not DaemonMode.EMBEDDED:
        return f"start {ollama}"
    if settings.has_embedded_engine() and mode is not DaemonMode.OLLAMA:
        return "start the embedded daemon"
    return ""


def _next(plan: str, against: AdapterError | None, mode: DaemonMode) -> str:
    """What the next command would do, in words."""
    if plan:
        return f"would {plan}"
    if against is not None:
        return f"would fail: {in_the_commands_words(against.hint)}"
    return f"has no daemon: {remedy(mode)}"


def _show(health: Health, problem: str, next_command: str, places: dict[str, str]) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=LABEL)
    table.add_column(overflow="fold")
    running = f"{health.origin}, {health.state}" if health.ready else "none runs"
    rows = {
        "daemon": running,
        "address": health.address,
        "version": health.version,
        "pid": str(health.pid or ""),
        "sandbox": health.sandbox,
        "too old for": ", ".join(health.missing) if health.ready else "",
        "promises": "\n".join(f"{each.name}: {standing(each)}" for each in health.guarantees),
        "problem": problem,
        "next command": next_command,
        "default model": places["default_model"],
        "models in": places["models_dir"],
        "settings": places["settings_file"] or f"none ({settings.settings_file()})",
    }
    if health.origin == ADOPTED:
        rows["models in"] = (
            f"where the daemon keeps them; `import` writes to {places['models_dir']}"
        )
    for label, value in rows.items():
        if value:
            table.add_row(label, Text(harmless(value)))
    print_table(table)
