"""The processes of an application: who is who among its descendants.

Whom to kill is chosen by what a process runs. Who is left is never asked by name: see `Warden` in
tests/system/jail/warden.py.
"""

from __future__ import annotations

import contextlib

import psutil

ROLES = {
    "keeper": "keeper.py",
    "trampoline": "trampoline.py",  # two of them in namespaces: the one outside, and process 1
    "daemon": "ollama_adapter.embedded",
    "runner": "runner.py",
}


def family_of(application: psutil.Process) -> list[psutil.Process]:
    """Its keeper and all that has come of it. Not its other children."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for child in application.children():
            with contextlib.suppress(psutil.NoSuchProcess):
                if role_of(child) == "keeper":
                    return [child, *child.children(recursive=True)]
    return []


def role_of(process: psutil.Process) -> str:
    """What it is to the daemon; "" for what it is not yet, or not any more."""
    with contextlib.suppress(psutil.Error):
        words = process.cmdline()
        for role, what in ROLES.items():
            if any(word.endswith(what) for word in words):
                return role
    return ""


def find(application: psutil.Process, role: str) -> psutil.Process | None:
    """The first in the family that has this role."""
    return next((each for each in family_of(application) if role_of(each) == role), None)
