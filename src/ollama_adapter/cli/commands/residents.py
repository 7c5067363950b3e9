"""What is in memory: `ps`."""

from __future__ import annotations

from ollama_adapter.cli.commands import Json


def ps(as_json: Json = False) -> None:
    """List the models in memory, and until when they stay there.

    \b
    Examples:
      ollama-adapter ps
      ollama-adapter ps --json
    """
    from ollama_adapter.cli import models as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.ps(as_json=as_json), as_json=as_json)
