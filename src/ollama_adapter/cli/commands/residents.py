"""What is in memory, and what shall be: `ps`, `plan`, `load`, `unload`, `pin` and `unpin`."""

from __future__ import annotations

import click

from ollama_adapter.cli.commands import JSON, MODEL, NUM_CTX

_OPTIONS = click.option(
    "--option",
    "-o",
    "options",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any option of how it is loaded.",
)


@click.command(short_help="List the models in memory.")
@JSON
def ps(as_json: bool) -> None:
    """List the models in memory: what they take, whether they work, and until when they stay there.

    \b
    Examples:
      ollama-adapter ps
      ollama-adapter ps --json
    """
    from ollama_adapter.cli import residents as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.ps(as_json=as_json), as_json=as_json)


@click.command(short_help="Tell what loading a model would take, and if it fits.")
@MODEL
@NUM_CTX
@JSON
def plan(model: str, num_ctx: int | None, as_json: bool) -> None:
    """Tell what loading a model would take, whether it fits, who would have to go, and why.

    Loads nothing. Ends with 0 if it fits into the budget, with 1 if it does not,
    also where the budget is only advice.

    \b
    Examples:
      ollama-adapter plan llama3.2
      ollama-adapter plan llama3.2 --num-ctx 32768
      ollama-adapter plan llama3.2 --json | jq .takes
    """
    from ollama_adapter.cli import planning as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.plan(model, num_ctx, as_json=as_json), as_json=as_json)


@click.command
@MODEL
@click.option(
    "--keep-alive",
    metavar="DURATION",
    help='How long it stays after its last use: "1h", seconds, -1: for ever.',
)
@NUM_CTX
@_OPTIONS
@JSON
def load(
    model: str,
    keep_alive: str | None,
    num_ctx: int | None,
    options: tuple[str, ...],
    as_json: bool,
) -> None:
    """Bring a model into the memory of the daemon that runs.

    Options of how it is loaded hold for every later request. One that is there with others is loaded anew.

    \b
    Examples:
      ollama-adapter load llama3.2
      ollama-adapter load llama3.2 --keep-alive 1h --num-ctx 8192
      ollama-adapter load llama3.2 -o num_gpu=20
    """
    from ollama_adapter.cli.ending import execute
    from ollama_adapter.cli.residents import Load

    command = Load(model, num_ctx, options, keep_alive)
    execute(lambda: command.prepare(as_json=as_json), as_json=as_json)


@click.command(short_help="Bring a model into memory, to stay there.")
@MODEL
@NUM_CTX
@_OPTIONS
@JSON
def pin(model: str, num_ctx: int | None, options: tuple[str, ...], as_json: bool) -> None:
    """Bring a model into the memory of the daemon that runs, where it stays until that ends.

    `unpin` takes that back, and `unload` removes it. Applications pin models with pool.pinned.

    \b
    Examples:
      ollama-adapter pin llama3.2
      ollama-adapter pin llama3.2 --num-ctx 8192
    """
    from ollama_adapter.cli.ending import execute
    from ollama_adapter.cli.residents import Load

    command = Load(model, num_ctx, options, pin=True)
    execute(lambda: command.prepare(as_json=as_json), as_json=as_json)


@click.command(short_help="Let a model that is pinned go again.")
@MODEL
@JSON
def unpin(model: str, as_json: bool) -> None:
    """Let a model that is pinned go again: from now on it stays for its keep-alive after its last use.

    Takes back `pin`, whoever has pinned it. What the setting pool.pinned names is pinned again by the
    next who uses it.

    \b
    Examples:
      ollama-adapter unpin llama3.2
      ollama-adapter unpin llama3.2 --json
    """
    from ollama_adapter.cli import residents as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.unpin(model, as_json=as_json), as_json=as_json)


@click.command
@MODEL
@JSON
def unload(model: str, as_json: bool) -> None:
    """Remove a model from memory, once it is idle.

    \b
    Examples:
      ollama-adapter unload llama3.2
      ollama-adapter unload llama3.2 --json
    """
    from ollama_adapter.cli import residents as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.unload(model, as_json=as_json), as_json=as_json)
