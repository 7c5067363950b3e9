"""What a model makes of a text: `run` and `embed`."""

from __future__ import annotations

from typing import Annotated

import typer

from ollama_adapter.cli.commands import Json


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
