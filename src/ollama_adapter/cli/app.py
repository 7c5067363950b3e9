"""The commands, their arguments and their help. What they do is imported when they run."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Annotated, Final

import rich  # noqa: F401 - typer can do without; what is missing is to be known at the start
import typer

NAME: Final = "ollama-adapter"
app: Final = typer.Typer(
    name=NAME,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]


def main() -> None:
    """Run the command that the arguments name, and exit."""
    _open_standard_files()
    try:
        app(prog_name=NAME)
    except KeyboardInterrupt:
        sys.exit(130)


def _open_standard_files() -> None:
    """Where 0, 1 or 2 is closed, the next file we open would become it, and get our output."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # in a place without UTF-8
    sys.stdin = sys.stdin or open(0, encoding="utf-8")  # noqa: SIM115 - as long as the program
    sys.stdout = sys.stdout or open(1, "w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = sys.stderr or open(2, "w", encoding="utf-8")  # noqa: SIM115


def _version(wanted: bool) -> None:
    if wanted:
        from ollama_adapter import __version__

        typer.echo(f"{NAME} {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Run AI models on this machine, and watch how they do it.

    \b
      ollama-adapter run "What does os.path.join do?"
      ollama-adapter models
      ollama-adapter import model.gguf mymodel
      ollama-adapter run mymodel "Tell me a story"

    An Ollama that runs is used; else the installed Ollama is started, else a small daemon of our own,
    and stopped again. Nothing leaves this machine.
    """


@app.command()
def run(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[MODEL] PROMPT", show_default=False, help="PROMPT may be - for stdin."
        ),
    ] = None,
    model: Annotated[
        str, typer.Option("--model", "-m", help="The model; then the one argument is the PROMPT.")
    ] = "",
    chat: Annotated[
        bool, typer.Option("--chat", help="As a chat message; without PROMPT, a conversation.")
    ] = False,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    temperature: Annotated[
        float | None, typer.Option(help="0 is always the likeliest token.")
    ] = None,
    num_predict: Annotated[int | None, typer.Option(help="At most so many tokens.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed, the same answer.")] = None,
    num_ctx: Annotated[int | None, typer.Option(help="Size of the context in tokens.")] = None,
    think: Annotated[bool | None, typer.Option("--think/--no-think", help="Let it think.")] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", metavar="json|FILE", help="JSON, or a schema in a file."),
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="The prompt as it is, without template.")
    ] = False,
    truncate: Annotated[
        bool, typer.Option("--truncate", help="Cut a prompt that is too long.")
    ] = False,
    keep_alive: Annotated[
        str | None, typer.Option(metavar="DURATION", help="How long the model stays in memory.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="Any Ollama option."),
    ] = None,
    no_logprobs: Annotated[
        bool, typer.Option("--no-logprobs", help="No log probabilities: no colours.")
    ] = False,
    stats: Annotated[
        bool, typer.Option("--stats", help="Statistics on stderr when piped.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Stream the answer to a prompt.

    In a terminal the text is coloured by how sure the model is, above a bar of its energy. Piped, it is
    the text alone. One argument is the PROMPT, two are MODEL and PROMPT; without MODEL the settings
    decide (OLLAMA_ADAPTER_MODEL), else it is tinydoc, a demonstration model that knows nothing.

    \b
    Examples:
      ollama-adapter run "What does len do?"
      ollama-adapter run llama3.2 "Why is the sky blue?" --temperature 0
      cat notes.txt | ollama-adapter run llama3.2 -
      ollama-adapter run -m llama3.2 --chat
      ollama-adapter run llama3.2 "Name three birds" --format json -o top_k=20
      ollama-adapter run "What is a list?" --json | jq -r .token
    """
    from ollama_adapter.cli.ending import execute
    from ollama_adapter.cli.run import Command

    fields = {
        "temperature": temperature,
        "num_predict": num_predict,
        "seed": seed,
        "num_ctx": num_ctx,
        "think": think,
        "raw": raw or None,
        "truncate": truncate or None,
        "keep_alive": keep_alive,
        "logprobs": False if no_logprobs else None,
    }
    command = Command(
        words or [], model, chat, as_json, stats, system, format_, fields, option or []
    )
    execute(command.prepare, as_json=as_json)


@app.command()
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


@app.command()
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


@app.command()
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


@app.command()
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


@app.command("import")
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


@app.command()
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


@app.command()
def embed(
    model: Annotated[str, typer.Argument(show_default=False)],
    texts: Annotated[
        list[str] | None,
        typer.Argument(metavar="TEXT...", show_default=False, help="Without: every line of stdin."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the vector of each text, one per line.

    \b
    Examples:
      ollama-adapter embed nomic-embed-text "a cat" "a dog"
      ollama-adapter embed nomic-embed-text --json < lines.txt
    """
    from ollama_adapter.cli import embed as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.embed(model, texts or [], as_json=as_json), as_json=as_json)
