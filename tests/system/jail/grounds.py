"""Where the yard is built, and by whom: as root, and as an ordinary user whom nobody knows."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ollama_adapter

HERE = Path(__file__).parent
SOURCE = Path(ollama_adapter.__file__).parent
STRANGER_UID = 61_998
WATCHDOG_S = 90.0

ROOT = os.geteuid() == 0
USERS = ("root", "ordinary") if ROOT else ("ordinary",)


def identity(user: str) -> dict[str, Any]:
    """How to start a process as that user."""
    if user == "root" or not ROOT:
        return {}
    return {"user": STRANGER_UID, "group": STRANGER_UID, "extra_groups": []}


def interpreter() -> str | None:
    """A Python that a user without rights can run: ours may lie in somebody's home."""
    for each in (sys.executable, "/usr/bin/python3"):
        with contextlib.suppress(OSError):
            command = [each, "-I", "-S", "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
            if (
                subprocess.run(command, **identity("ordinary"), cwd="/", check=False).returncode
                == 0
            ):
                return each
    return None


@contextlib.contextmanager
def yard_directory() -> Iterator[Path]:
    """A directory that everybody may enter, with the jail's own code in it."""
    with tempfile.TemporaryDirectory(prefix="yard-") as name:
        base = Path(name)
        jail = base / "ollama_adapter" / "system" / "jail"
        jail.mkdir(parents=True)
        for each in (SOURCE / "system" / "jail").glob("*.py"):
            shutil.copy(each, jail)
        for each in (HERE / "attacks.py", HERE / "yard.py"):
            shutil.copy(each, base)
        shutil.copy(SOURCE / "errors.py", base / "ollama_adapter")
        (base / "places").mkdir()
        for each in (base, *base.rglob("*")):
            each.chmod(0o755 if each.is_dir() else 0o644)
        (base / "places").chmod(0o1777)
        yield base


def run_yard(user: str, *what: str) -> dict[str, Any]:
    """What became of the attacks, by level."""
    with yard_directory() as base:
        command = [interpreter() or sys.executable, "-B", str(base / "yard.py"), str(base), *what]
        done = subprocess.run(
            command,
            **identity(user),
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=WATCHDOG_S,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    report: dict[str, Any] = json.loads(done.stdout)
    return report
