"""What is on the disk: `models`, `import` and `rm`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ollama_adapter.cli.commands import Json


def models(as_json: Json = False) -> None:
    """List the models on this machine.

    \b
    Examples:
      ollama-adapter models
      ollama-adapter models --json | jq -r .name
    """
    from ollama_adapter.cli import models as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.models(as_json=as_json), as_json=as_json)


def import_(
    file: Annotated[Path, typer.Argument(metavar="FILE.gguf", show_default=False)],
    name: Annotated[
        str | None, typer.Argument(help="Its name; without, that of the file.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a GGUF file usable, under a name. It is checked first, and copied.

    \b
    Examples:
      ollama-adapter import ./llama-3.2-1b-q4_k_m.gguf
      ollama-adapter import ./model.gguf mymodel:1b
    """
    from ollama_adapter.cli import importing
    from ollama_adapter.cli.ending import execute

    execute(lambda: importing.import_file(file, name, as_json=as_json), as_json=as_json)


def rm(
    names: Annotated[list[str], typer.Argument(metavar="MODEL...", show_default=False)],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Json = False,
) -> None:
    """Remove models from the disk.

    \b
    Examples:
      ollama-adapter rm mymodel
      ollama-adapter rm -y mymodel:1b othermodel
    """
    from ollama_adapter.cli import models as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.remove(names, yes=yes, as_json=as_json), as_json=as_json)
