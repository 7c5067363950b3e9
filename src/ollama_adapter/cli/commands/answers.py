"""What a model makes of a text: `run` and `embed`."""

from __future__ import annotations

from typing import Any

import click

from ollama_adapter.cli.commands import JSON, MODEL, NUM_CTX


@click.command
@click.argument("words", nargs=-1, metavar="[MODEL] [PROMPT]")
@click.option("--model", "-m", default="", help="The model; then the one argument is the PROMPT.")
@click.option("--chat", is_flag=True, help="As a chat message; without PROMPT, a conversation.")
@click.option("--system", help="The system message.")
@click.option("--temperature", type=float, help="0 is always the likeliest token.")
@click.option("--num-predict", type=int, help="At most so many tokens.")
@click.option("--seed", type=int, help="The same seed, the same answer.")
@NUM_CTX
@click.option("--think/--no-think", default=None, help="Let it think.")
@click.option("--format", "format_", metavar="json|FILE", help="JSON, or a schema in a file.")
@click.option("--raw", is_flag=True, default=None, help="The prompt as it is, without template.")
@click.option("--truncate", is_flag=True, default=None, help="Cut a prompt that is too long.")
@click.option("--keep-alive", metavar="DURATION", help="How long the model stays in memory.")
@click.option(
    "--option", "-o", "options", multiple=True, metavar="NAME=VALUE", help="Any Ollama option."
)
@click.option(
    "--no-logprobs",
    "logprobs",
    flag_value=False,
    default=None,
    help="No log probabilities: no colours.",
)
@click.option("--stats", is_flag=True, help="Statistics on stderr when piped.")
@JSON
def run(
    words: tuple[str, ...],
    model: str,
    chat: bool,
    system: str | None,
    format_: str | None,
    options: tuple[str, ...],
    stats: bool,
    as_json: bool,
    **fields: Any,
) -> None:
    """Stream the answer to a prompt.

    In a terminal the text is coloured by how sure the model is, above a bar of its energy. Piped, it is
    the text alone. One argument is the PROMPT, two are MODEL and PROMPT; PROMPT may be - for stdin. Without
    MODEL the settings decide (OLLAMA_ADAPTER_MODEL), else it is tinydoc, a demonstration model that knows
    nothing.

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

    command = Command(words, model, chat, as_json, stats, system, format_, fields, options)
    execute(command.prepare, as_json=as_json)


@click.command(short_help="Print the vector of each text.")
@MODEL
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@JSON
def embed(model: str, texts: tuple[str, ...], as_json: bool) -> None:
    """Print the vector of each TEXT, one per line; without any, of every line of stdin.

    \b
    Examples:
      ollama-adapter embed nomic-embed-text "a cat" "a dog"
      ollama-adapter embed nomic-embed-text --json < lines.txt
    """
    from ollama_adapter.cli import embed as command
    from ollama_adapter.cli.ending import execute

    execute(lambda: command.embed(model, texts, as_json=as_json), as_json=as_json)
