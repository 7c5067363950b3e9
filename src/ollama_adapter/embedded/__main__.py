"""`python -m ollama_adapter.embedded`: says what is missing in one line, else becomes the daemon."""

from __future__ import annotations

import contextlib
import importlib.util
import sys

_NEEDED = ("uvicorn", "xllamacpp")
TAKES_NOTHING = """\
Error: the embedded daemon of Ollama Adapter takes no arguments
Ollama's variables configure it (OLLAMA_HOST, OLLAMA_MODELS and others), and it runs until it is told to stop.
"""


def main() -> int:
    """Run until told to stop; the exit code."""
    if len(sys.argv) > 1:
        sys.stderr.write(TAKES_NOTHING)
        return 2
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        names = " and ".join(missing)
        sys.stderr.write(f"Error: {names} not installed: pip install 'ollama-adapter[embedded]'\n")
        return 1
    from ollama_adapter.embedded import starter
    from ollama_adapter.system.jail import dumps

    with contextlib.suppress(OSError):  # in a jail it cannot be said again: its keeper has
        dumps.forbid()
    try:
        begun = starter.begin()  # before the rest is imported: it starts meanwhile
    except OSError as error:
        sys.stderr.write(f"Error: no process to start model runners: {error.strerror}\n")
        return 1
    from ollama_adapter.embedded.serve import run

    return run(begun)


if __name__ == "__main__":
    sys.exit(main())
