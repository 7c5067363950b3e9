"""What this machine has, and may use: `status`, `doctor` and `tier`."""

from __future__ import annotations

import click

from ollama_adapter.cli.commands import JSON


@click.command(short_help="Tell which daemon runs or would be started.")
@click.option("--start", is_flag=True, help="Start a daemon where none runs.")
@JSON
def status(start: bool, as_json: bool) -> None:
    """Tell which daemon runs or would be started, and where models are kept. Starts nothing.

    Ends with 0 if a daemon runs or can be started, with 1 if there is none to be had.

    \b
    Examples:
      ollama-adapter status
      ollama-adapter status --start      start one, look at it, stop it
      ollama-adapter status --json | jq .address
    """
    from ollama_adapter.cli import status as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.status(start=start, as_json=as_json), as_json=as_json)


@click.command(short_help="Tell what is installed, and prove the sandbox.")
@JSON
def doctor(as_json: bool) -> None:
    """Tell what is installed and which sandbox holds here, and prove it with harmless attacks.

    Ends with 0 if a daemon can be had and every attack is refused.

    \b
    Examples:
      ollama-adapter doctor
      ollama-adapter doctor --json | jq .level
    """
    from ollama_adapter.cli import doctor as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.doctor(as_json=as_json), as_json=as_json)


@click.command(short_help="Tell which class of machine this is, and why.")
@click.argument("model", default="")
@click.option("--measure", is_flag=True, help="Measure what this machine can do, in a few seconds.")
@JSON
def tier(model: str, measure: bool, as_json: bool) -> None:
    """Tell which class of machine this is, why, and how much of it models may use.

    `--measure` reads memory for a moment, and lets a model write: MODEL, or the smallest that is here.

    \b
    Examples:
      ollama-adapter tier
      ollama-adapter tier --measure
      ollama-adapter tier --measure llama3.2
      ollama-adapter tier --json | jq .budget
    """
    from ollama_adapter.cli import tier as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.tier(model, measured=measure, as_json=as_json), as_json=as_json)
