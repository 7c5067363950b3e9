"""The command `ollama-adapter`, as installed and as `python -m ollama_adapter`."""

from __future__ import annotations

import sys
from typing import Final

EXTRA: Final = ("typer", "rich")


def main() -> None:
    """Run the command; where its extra is absent, say how to install it and end with 1."""
    try:
        from ollama_adapter.cli.app import main as command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print("the command needs: pip install 'ollama-adapter[cli]'", file=sys.stderr)
        sys.exit(1)
    command()


if __name__ == "__main__":
    main()
