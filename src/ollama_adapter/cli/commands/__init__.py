"""The commands: arguments and help, one file per group. What they do is imported when they run."""

from __future__ import annotations

from typing import Final

import click

HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
MODEL: Final = click.argument("model")
NUM_CTX: Final = click.option("--num-ctx", type=int, help="Size of the context in tokens.")
YES: Final = click.option("--yes", "-y", is_flag=True, help="Do not ask.")
JSON: Final = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object per line, for programs."
)
