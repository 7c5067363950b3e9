"""What is on the disk: `models`, `pull`, `import`, `rm` and `purge`."""

from __future__ import annotations

from pathlib import Path

import click

from ollama_adapter.cli.commands import JSON, MODEL, YES


@click.command
@JSON
def models(as_json: bool) -> None:
    """List the models on this machine.

    \b
    Examples:
      ollama-adapter models
      ollama-adapter models --json | jq -r .name
    """
    from ollama_adapter.cli import models as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.models(as_json=as_json), as_json=as_json)


@click.command(short_help="Download a model from a registry.")
@MODEL
@click.option("--yes", "-y", is_flag=True, help="Do not ask: this is your consent.")
@click.option(
    "--also-from", multiple=True, metavar="HOST", help="A host that the registry may send us to."
)
@JSON
def pull(model: str, yes: bool, also_from: tuple[str, ...], as_json: bool) -> None:
    """Download a model from a registry, Ollama's unless the name says another one.

    You are asked first, and told how large it is. What was interrupted goes on where it was. Every host that
    was talked to is named at the end.

    \b
    Examples:
      ollama-adapter pull llama3.2:1b
      ollama-adapter pull -y registry.example.com/team/model:7b
      ollama-adapter pull -y llama3.2:1b --json | jq .done_bytes
    """
    from ollama_adapter.cli import pulling
    from ollama_adapter.cli.ending import execute

    execute(
        lambda: pulling.pull(model, yes=yes, also_from=also_from, as_json=as_json),
        as_json=as_json,
    )


@click.command
@click.argument("file", type=click.Path(path_type=Path), metavar="FILE.gguf")
@click.argument("name", required=False)
@JSON
def import_(file: Path, name: str | None, as_json: bool) -> None:
    """Make a GGUF file usable, under NAME or its own. It is checked first, and copied.

    \b
    Examples:
      ollama-adapter import ./llama-3.2-1b-q4_k_m.gguf
      ollama-adapter import ./model.gguf mymodel:1b
    """
    from ollama_adapter.cli import importing
    from ollama_adapter.cli.ending import execute

    execute(lambda: importing.import_file(file, name, as_json=as_json), as_json=as_json)


@click.command
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@YES
@JSON
def rm(names: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Remove models from the disk.

    \b
    Examples:
      ollama-adapter rm mymodel
      ollama-adapter rm -y mymodel:1b othermodel
    """
    from ollama_adapter.cli import models as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.remove(names, yes=yes, as_json=as_json), as_json=as_json)


@click.command(short_help="Tell what lies where on the disk, and remove it.")
@click.argument("parts", nargs=-1, metavar="[PART]...")
@YES
@JSON
def purge(parts: tuple[str, ...], yes: bool, as_json: bool) -> None:
    """Tell what of ours lies where on the disk; remove the PARTs that are named.

    The parts are models, downloads, home, daemons, settings, or all of these. A store that is Ollama's
    or your own is no part of it, and is only removed when its directory is named. Links are not followed.

    \b
    Examples:
      ollama-adapter purge
      ollama-adapter purge downloads home
      ollama-adapter purge all --yes
      ollama-adapter purge ~/.ollama/models
      ollama-adapter purge --json | jq .bytes
    """
    from ollama_adapter.cli import purging as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.purge(parts, yes=yes, as_json=as_json), as_json=as_json)
