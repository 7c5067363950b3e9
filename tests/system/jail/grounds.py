"""Who tries what, and where: as root, as an ordinary user whom nobody knows, in a yard, on a stage."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ollama_adapter
from ollama_adapter.system.jail.levels import TRAMPOLINE, Facts

HERE = Path(__file__).parent
SOURCE = Path(ollama_adapter.__file__).parent
STAGE = HERE / "stage.py"
OURS = [str(HERE.parents[2]), str(SOURCE.parent), sys.prefix, sys.base_prefix]
"""What a program of the tests needs: the tests, the package, its Python and that one's own."""
STRANGER_UID = 61_998
WATCHDOG_S = 90.0

ROOT = os.geteuid() == 0


def staged(argv: Sequence[str], user: str, **wanted: Any) -> list[str]:
    """The command that runs `argv` as that user, who can reach our Python; see stage.py."""
    wanted = {"argv": list(argv), **wanted}
    if ROOT:
        wanted["open"] = OURS
    if ROOT and user == "ordinary":
        wanted["uid"] = STRANGER_UID
    return [sys.executable, "-I", "-S", str(STAGE), json.dumps(wanted)]


def why_not(user: str, **wanted: Any) -> str:
    """Why nothing can be staged for that user here; "" where it can."""
    if user == "root" and not ROOT:
        return "we are not root"
    command = staged([sys.executable, "-c", "import ollama_adapter"], user, **wanted)
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else ""


USERS = tuple(each for each in ("root", "ordinary") if not why_not(each))
"""As root: both, unless root has too few rights to make way for somebody else."""


def identity(user: str) -> dict[str, Any]:
    """How to start a process as that user."""
    if user == "root" or not ROOT:
        return {}
    return {"user": STRANGER_UID, "group": STRANGER_UID, "extra_groups": []}


@functools.cache
def facts_of(user: str, *, refuse: bool = False) -> Facts:
    """What holds for that user, as our own probe reports it."""
    argv = [sys.executable, "-I", "-S", str(TRAMPOLINE), "probe"]
    done = subprocess.run(staged(argv, user, refuse=refuse), capture_output=True, check=True)
    return Facts(**json.loads(done.stdout))


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
