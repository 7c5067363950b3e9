"""The command line: which commands there are, in the order of the help, and how the program begins."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Final

import click
import rich  # noqa: F401 - needed later; what is missing is to be known at the start

from ollama_adapter.cli.commands import HELP, answers, disk, machine, residents

NAME: Final = "ollama-adapter"
COMPLETE_VARIABLE: Final = "_OLLAMA_ADAPTER_COMPLETE"  # by which a shell asks: click's convention


def main() -> None:
    """Run the command that the arguments name, and exit."""
    _open_standard_files()
    _forget_sizes_that_are_none()
    try:
        code = _invoke(sys.argv[1:])
        if code == 0:  # else it has been told what went wrong
            sys.stdout.flush()
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except BrokenPipeError:
        code = 141
    except OSError as error:  # such as a full disk
        code = 1
        _say(f"error: {error.strerror}")
    _drop_what_nobody_takes()
    sys.exit(code)


def _invoke(arguments: list[str]) -> int:
    """The exit code. What click does in `Group.main`, but that errors of stdout come through."""
    if asked := os.environ.get(COMPLETE_VARIABLE):  # noqa: TID251 - by which a shell asks
        from click.shell_completion import shell_complete

        return shell_complete(app, {}, NAME, COMPLETE_VARIABLE, asked)
    try:
        with app.make_context(NAME, arguments) as context:
            app.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        _say(error.format_message())
        return error.exit_code
    except click.UsageError as error:
        place = error.ctx.command_path if error.ctx is not None else NAME
        usage = error.ctx.get_usage() if error.ctx is not None else ""
        _say(
            f"{usage}\nerror: {error.format_message()}\nhint: `{place} --help` tells what there is"
        )
        return error.exit_code
    return 0


def _say(words: str) -> None:
    with contextlib.suppress(OSError):
        print(words, file=sys.stderr, flush=True)


def _drop_what_nobody_takes() -> None:
    """At its end Python would try to write it, and fail with a code of its own."""
    for number, stream in enumerate((sys.stdout, sys.stderr), 1):
        try:
            stream.flush()
        except OSError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)


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


def _forget_sizes_that_are_none() -> None:
    """Nothing would be shown in 0 columns; the terminal itself knows better."""
    for name in ("COLUMNS", "LINES"):
        text = os.environ.get(name, "1")  # noqa: TID251 - as click and rich would read it
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text)):
            del os.environ[name]  # noqa: TID251


class _Group(click.Group):
    """The commands stay in the order in which they are added."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)


def _show_version(ctx: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if wanted:
        from ollama_adapter import __version__

        click.echo(f"{NAME} {__version__}")
        ctx.exit()


@click.group(NAME, _Group, context_settings=HELP)
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_show_version,
    help="Show the version.",
)
def app() -> None:
    """Run AI models on this machine, and watch how they do it.

    \b
      ollama-adapter run "What does os.path.join do?"
      ollama-adapter models
      ollama-adapter import model.gguf mymodel
      ollama-adapter run mymodel "Tell me a story"

    An Ollama that runs is used; else the installed Ollama is started, else a small daemon of our own,
    and stopped again. Nothing leaves this machine.
    """


@click.command
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print the script by which a shell completes these commands.

    \b
    Examples:
      eval "$(ollama-adapter completion bash)"       in ~/.bashrc
      eval "$(ollama-adapter completion zsh)"        in ~/.zshrc
      ollama-adapter completion fish | source        in config.fish
    """
    from click.shell_completion import get_completion_class

    kind = get_completion_class(shell)
    assert kind is not None
    click.echo(kind(app, {}, NAME, COMPLETE_VARIABLE).source())


_COMMANDS: Final[dict[str, click.Command]] = {
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
    "completion": completion,
}
for name, command in _COMMANDS.items():
    app.add_command(command, name)
