"""Runs import-linter, whose command is only a script, through the interpreter; leaves no cache behind."""

from __future__ import annotations

import sys

from importlinter.cli import lint_imports

if __name__ == "__main__":
    sys.exit(lint_imports(no_cache=True, no_logo=True))
