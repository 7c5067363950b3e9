"""Checks that the documentation is true: its links lead somewhere, its examples run.

A block marked ```python is run as a program of its own, in an empty directory, and must end well; a block
marked ```pycon is a session whose answers must be the ones shown. A block of any other kind is only read.
"""

from __future__ import annotations

import doctest
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\]\(([^)\s]+)\)")
BLOCK = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
LIMIT_S = 120


def main() -> int:
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    faults = [f"{page.relative_to(ROOT)}: {fault}" for page in pages for fault in check(page)]
    print("\n".join([*faults, f"{len(pages)} pages, {len(faults)} faults"]))
    return 1 if faults else 0


def check(page: Path) -> Iterator[str]:
    text = page.read_text(encoding="utf-8")
    prose = BLOCK.sub("", text)
    for target in LINK.findall(prose):
        path = target.partition("#")[0]
        if path and ":" not in target and not (page.parent / path).exists():
            yield f"no such file: {target}"
    for block in BLOCK.finditer(text):
        line = text.count("\n", 0, block.start()) + 1
        if fault := run(block[1], block[2]):
            yield f"the block at line {line} fails:\n{fault}"


def run(kind: str, code: str) -> str:
    """What went wrong, or nothing."""
    if kind == "pycon":
        case = doctest.DocTestParser().get_doctest(code, {}, "block", None, None)
        told: list[str] = []
        doctest.DocTestRunner().run(case, out=told.append)
        return "".join(told)
    if kind != "python":
        return ""
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-W", "error", "-c", code]
        try:
            done = subprocess.run(
                command, cwd=directory, capture_output=True, text=True, timeout=LIMIT_S, check=False
            )
        except subprocess.TimeoutExpired:
            return f"it runs for more than {LIMIT_S} s"
    return done.stderr if done.returncode else ""


if __name__ == "__main__":
    sys.exit(main())
