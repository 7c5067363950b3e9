"""The command line: which commands there are, in the order of the help, and how the program begins."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import Annotated, Final

import rich  # noqa: F401 - typer can do without; what is missing is to be known at the start
import typer

from ollama_adapter.cli.commands import answers, disk, machine, residents

NAME: Final = "ollama-adapter"
app: Final = typer.Typer(
    name=NAME,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


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


_COMMANDS: Final[dict[str, Callable[..., None]]] = {
    "run": answers.run,
    "status": machine.status,
    "doctor": machine.doctor,
    "tier": machine.tier,
    "models": disk.models,
    "ps": residents.ps,
    "plan": residents.plan,
    "load": residents.load,
    "unload": residents.unload,
    "pin": residents.pin,
    "unpin": residents.unpin,
    "pull": disk.pull,
    "import": disk.import_,
    "rm": disk.rm,
    "purge": disk.purge,
    "embed": answers.embed,
}
for name, command in _COMMANDS.items():
    app.command(name)(command)
