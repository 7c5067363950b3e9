"""What this machine has, and may use: `status` and `doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from ollama_adapter.cli.commands import Json


def status(
    start: Annotated[bool, typer.Option("--start", help="Start a daemon where none runs.")] = False,
    as_json: Json = False,
) -> None:
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


def doctor(as_json: Json = False) -> None:
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
