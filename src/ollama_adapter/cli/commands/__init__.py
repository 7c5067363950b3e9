"""The commands: arguments and help, one file per group. What they do is imported when they run."""

from __future__ import annotations

from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="One JSON object per line, for programs.")]
