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
from ollama_adapter.errors import NotSandboxed
from ollama_adapter.system.jail.levels import TRAMPOLINE, Facts, decide
from ollama_adapter.system.jail.policy import Level

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
    wanted = {"argv": list(argv), "open": OURS if ROOT else [], **wanted}
    if ROOT and user == "ordinary":
        wanted["uid"] = STRANGER_UID
    return [sys.executable, "-I", "-S", str(STAGE), json.dumps(wanted)]


def can_be(user: str) -> bool:
    """Whether we can run our Python as that user."""
    command = staged([sys.executable, "-I", "-S", "-c", ""], user)
    return subprocess.run(command, stderr=subprocess.DEVNULL, cwd="/", check=False).returncode == 0


USERS = tuple(each for each in (("root", "ordinary") if ROOT else ("ordinary",)) if can_be(each))
"""Where Python lies in root's home and root may not make a way there for others, root is the only one."""


@functools.cache
def facts_of(user: str, **wanted: bool) -> Facts:
    """What holds for that user, as our own probe reports it."""
    argv = [sys.executable, "-I", "-S", str(TRAMPOLINE), "probe"]
    done = subprocess.run(staged(argv, user, **wanted), capture_output=True, check=True)
    return Facts(**json.loads(done.stdout))


def lacking(user: str, level: Level) -> str:
    """Why that user cannot have this very level here; "" where it can be had."""
    if level is Level.NONE:
        return ""
    without = tuple(each for each in Level if each not in (level, Level.NONE))
    try:
        found = decide(facts_of(user), "partial", without=without)
    except NotSandboxed as error:
        return str(error)
    return "" if found.level is level else "; ".join(found.reasons)


def environment_of(user: str, homes: Path, compiled: bool = True) -> dict[str, str]:
    """What a program on a stage is given: a home of its own, below `homes`, and where to import from.

    `compiled`: it can reach our bytecode; else it would compile Python's own library, too.
    """
    home = homes / user
    home.mkdir(exist_ok=True)
    if ROOT and user != "root":
        os.chown(home, STRANGER_UID, STRANGER_UID)
    cache = {"PYTHONPYCACHEPREFIX": sys.pycache_prefix} if compiled and sys.pycache_prefix else {}
    return cache | {
        "HOME": str(home),
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": os.pathsep.join(OURS[:2]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OLLAMA_ADAPTER_DAEMON_MODE": "embedded",
    }


def run_staged(
    argv: Sequence[str], user: str, homes: Path, **wanted: Any
) -> subprocess.CompletedProcess[str]:
    """Run our Python with these arguments to its end, as that user; see `staged`."""
    return subprocess.run(
        staged([wanted.pop("python", sys.executable), *argv], user, **wanted),
        env=environment_of(user, homes, compiled="hide" not in wanted),
        cwd=OURS[0],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


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


def run_yard(user: str, *what: str, refuse: bool = False) -> dict[str, Any]:
    """What became of the attacks, by level."""
    with yard_directory() as base:
        argv = [sys.executable, "-B", str(base / "yard.py"), str(base), *what]
        done = subprocess.run(
            staged(argv, user, refuse=refuse),
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
