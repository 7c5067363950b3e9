"""The command `ollama-adapter`, as installed and as `python -m ollama_adapter`.

It imports next to nothing: until `main` is reached, Ctrl-C is Python's, and shows where it was.
"""

from __future__ import annotations

import os
import signal
import sys

EXTRA = ("click", "rich")
CTRL_C = 130


def main() -> None:
    """Run the command; where its extra is absent, say how to install it and end with 1."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is to be ignored
        signal.signal(signal.SIGINT, _leave)
    try:
        from ollama_adapter.cli.app import main as command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in EXTRA:
            raise
        print("the command needs: pip install 'ollama-adapter[cli]'", file=sys.stderr)
        sys.exit(1)
    command()


def _leave(*_: object) -> None:
    """Ctrl-C before there is anything to abort: in the middle of an import, an exception is a fault."""
    if os.isatty(2):
        os.write(2, b"\n")  # the terminal has shown ^C
    os._exit(CTRL_C)


if __name__ == "__main__":
    main()
