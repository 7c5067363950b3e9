"""A canary: a prompt and an answer that must be found nowhere but in the caller's hands.

They are looked for as they are and in the forms in which they are likely to be kept: UTF-16, base64 at each
alignment, escaped as JSON.
"""

from __future__ import annotations

import base64
import logging
import os
from collections.abc import Iterable
from pathlib import Path

import psutil

PROMPT = "Zyxwv-qanary-7391-ß"
ANSWER = "kanarienvogel-4417"
CHOICE = {"type": "object", "properties": {"a": {"enum": [ANSWER]}}, "required": ["a"]}
"""A schema that makes any model say the answer."""
ENDLESS = {"type": "array", "items": {"enum": [ANSWER]}, "minItems": 4000}
"""One that makes it say nothing else, for long."""


def forms_of(secret: str) -> list[bytes]:
    """The bytes to look for."""
    plain = secret.encode()
    encoded = [base64.b64encode(b"\0" * shift + plain)[4:-4] for shift in range(3)]
    escaped = secret.encode("unicode_escape")
    return [plain, secret.encode("utf-16-le"), escaped, *encoded]


FORMS = [form for secret in (PROMPT, ANSWER) for form in forms_of(secret)]


def assert_absent(data: bytes, where: str) -> None:
    for form in FORMS:
        assert form not in data, f"the canary was found in {where}"


def search_files(*places: Path) -> int:
    """How many files were searched, names and contents."""
    searched = 0
    for path in (each for place in places for each in place.rglob("*")):
        assert_absent(path.name.encode(), "the name of a file")
        if path.is_file() and not path.is_symlink():
            assert_absent(path.read_bytes(), str(path))
            searched += 1
    return searched


def search_processes(processes: Iterable[psutil.Process]) -> int:
    """How many processes were searched, command line and environment; of those that run, all."""
    searched = 0
    for process in processes:
        try:
            for name in ("cmdline", "environ"):
                assert_absent(_of_process(process.pid, name), f"{name} of a process")
            searched += 1
        except (ProcessLookupError, FileNotFoundError):
            assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    return searched


def _of_process(pid: int, name: str) -> bytes:
    path = Path(f"/proc/{pid}/{name}")
    try:
        return path.read_bytes()
    except PermissionError:
        # closed to us as to others; a process that is open to its user must be to us, too
        assert path.stat().st_uid != os.geteuid(), f"{name} of a process cannot be read"
        return b""


class Everything(logging.Handler):
    """Keeps every log record of the process, with all its fields."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(f"{record.getMessage()} {record.__dict__}")

    def search(self) -> int:
        """How many lines were searched."""
        assert_absent("\n".join(self.lines).encode(), "the log")
        return len(self.lines)
