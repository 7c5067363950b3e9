"""Sees whoever is left behind: not by name, but because nobody can leave its descendants.

Whose parent ends becomes the child of the next one above that has asked for it, which is us
(PR_SET_CHILD_SUBREAPER). Besides, a keeper begins a session, and all that it starts is in it.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from ollama_adapter.system.jail.linux import prctl

_SET_CHILD_SUBREAPER = 36
_LISTEN = "0A"
_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")


class Warden:
    """Of all that is started while it watches."""

    def __init__(self) -> None:
        self._before = set(psutil.Process().children(recursive=True))

    def descendants(self) -> set[psutil.Process]:
        """Those that run."""
        found = set(psutil.Process().children(recursive=True)) - self._before
        return {each for each in found if runs(each)}

    def orphans(self, application: psutil.Process) -> set[psutil.Process]:
        """Those that run and have lost their application."""
        left = self.descendants() - {application}
        with contextlib.suppress(psutil.NoSuchProcess):
            left -= set(application.children(recursive=True))
        return {each for each in left if runs(each)}


@contextlib.contextmanager
def watching() -> Iterator[Warden]:
    """The orphans of the machine's tests are ours for as long."""
    prctl(_SET_CHILD_SUBREAPER, 1)
    try:
        yield Warden()
    finally:
        prctl(_SET_CHILD_SUBREAPER, 0)


def runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def in_session(leader: int) -> set[psutil.Process]:
    """Who runs and belongs to the session that this process once began."""
    found: set[psutil.Process] = set()
    for pid in psutil.pids():
        with contextlib.suppress(ProcessLookupError, psutil.NoSuchProcess):
            if os.getsid(pid) == leader and runs(process := psutil.Process(pid)):
                found.add(process)
    return found


def listening() -> set[str]:
    """The sockets that listen on this machine, by their inodes."""
    found: set[str] = set()
    for table in map(Path, _TABLES):
        with contextlib.suppress(OSError):
            lines = map(str.split, table.read_text("ascii").splitlines()[1:])
            found |= {fields[9] for fields in lines if fields[3] == _LISTEN}
    return found


def doors_of(processes: Iterable[psutil.Process]) -> set[str]:
    """Those of them that these processes hold. One in a network of its own holds none here."""
    held: set[str] = set()
    for each in processes:
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{each.pid}/fd"):
                with contextlib.suppress(OSError):
                    held.add(os.readlink(f"/proc/{each.pid}/fd/{fd}"))
    return {inode for inode in listening() if f"socket:[{inode}]" in held}
