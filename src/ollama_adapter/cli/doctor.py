"""`doctor`: what is installed, which level of the jail holds here, and the proof."""

from __future__ import annotations

import dataclasses
import platform
from collections.abc import Coroutine
from typing import Any

from click.exceptions import Exit
from rich.table import Table
from rich.text import Text

from ollama_adapter.cli.draw import BAD, GOOD, LABEL
from ollama_adapter.cli.output import harmless, print_json, print_table
from ollama_adapter.cli.status import look
from ollama_adapter.config import Config, DaemonMode
from ollama_adapter.errors import DaemonError
from ollama_adapter.system import settings
from ollama_adapter.system.jail import levels
from ollama_adapter.system.jail.policy import Level
from ollama_adapter.system.jail.proof import Proof, prove
from ollama_adapter.system.launch import remedy
from ollama_adapter.system.obstacles import obstacle


@dataclasses.dataclass(frozen=True, slots=True)
class Findings:
    """What the doctor sees; `level` is "" where no sandbox holds, `obstacle` why no daemon would start."""

    python: str
    ollama: str
    embedded: bool
    models_dir: str
    sandbox: str
    level: str
    reasons: tuple[str, ...]
    proofs: tuple[Proof, ...]
    obstacle: str

    @property
    def healthy(self) -> bool:
        able = bool(self.level) and not self.obstacle
        return able and all(each.refused for each in self.proofs)


def doctor(*, as_json: bool) -> Coroutine[Any, Any, None]:
    return _doctor(settings.load_config(), as_json)


async def _doctor(config: Config, as_json: bool) -> None:
    findings = await _examine(config)
    if as_json:
        print_json({**dataclasses.asdict(findings), "healthy": findings.healthy})
    else:
        _show(findings)
    if not findings.healthy:
        raise Exit(1)


async def _examine(config: Config) -> Findings:
    level = Level.NONE
    reasons: tuple[str, ...] = ()
    refused = ""
    try:
        decision = levels.decide(levels.probe(), config.daemon.sandbox.value)
        level, reasons = decision.level, decision.reasons
    except DaemonError as error:
        refused = str(error)
    proofs = await prove(level) if level is not Level.NONE else []
    return Findings(
        python=platform.python_version(),
        ollama=settings.find_ollama(config.daemon) or "",
        embedded=settings.has_embedded_engine(),
        models_dir=str(settings.models_dir(config.daemon)),
        sandbox=config.daemon.sandbox.value,
        level="" if refused else level.value,
        reasons=(refused,) if refused else reasons,
        proofs=tuple(proofs),
        obstacle="" if refused else await _obstacle(config),
    )


async def _obstacle(config: Config) -> str:
    """Why no daemon can be had; "" where nothing is known to stand against it."""
    mode = config.daemon.mode
    if mode is DaemonMode.ADOPT:
        health, problem = await look(config, start=False)
        nothing = f"none runs on {health.address}, and daemon.mode is adopt: none is started"
        return "" if health.ready else problem or nothing
    ollama = bool(settings.find_ollama(config.daemon)) and mode is not DaemonMode.EMBEDDED
    embedded = settings.has_embedded_engine() and mode is not DaemonMode.OLLAMA
    if not (ollama or embedded):
        return f"nothing to start is installed: {remedy(mode)}"
    return str(obstacle(config.daemon) or "")


def _show(findings: Findings) -> None:
    table = Table.grid(padding=(0, 2))
    table.add_column(style=LABEL)
    table.add_column(overflow="fold")
    table.add_row("Python", findings.python)
    table.add_row("Ollama", Text(harmless(findings.ollama or "not installed")))
    table.add_row("embedded", "installed" if findings.embedded else "not installed")
    table.add_row("models in", Text(harmless(findings.models_dir)))
    if findings.obstacle:
        table.add_row("no daemon", Text(harmless(findings.obstacle), BAD))
    level = Level(findings.level).words if findings.level else "none holds: no daemon is started"
    table.add_row("sandbox", Text(level, GOOD if findings.level else BAD))
    for reason in findings.reasons:
        table.add_row("", Text(harmless(reason), LABEL))
    for proof in findings.proofs:
        shown = f"refused: {proof.reason}" if proof.refused else "SUCCEEDED"
        table.add_row(proof.attempt, Text(harmless(shown), GOOD if proof.refused else BAD))
    print_table(table)
