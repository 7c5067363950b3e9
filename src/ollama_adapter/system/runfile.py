"""Which applications of this user keep a daemon of their own: a small file each, gone with its owner.

An owner is known by its process id, the time at which it started and the boot of the machine, so that a
file left behind by a crash is never taken for that of a stranger who got the same number.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

import msgspec

SUFFIX: Final = ".json"
CLOCK_TICK_S: Final = 0.02  # by which two readings of one start may differ


class Entry(msgspec.Struct, frozen=True):
    """An application that keeps a daemon on `port`; 0: nobody else can reach it."""

    pid: int
    started: float
    boot: str
    port: int


class RunFiles(msgspec.Struct, frozen=True):
    """The directory of the files."""

    directory: Path

    @classmethod
    def of_this_user(cls) -> RunFiles:
        import platformdirs  # here and below: nothing is imported before it is needed

        return cls(platformdirs.user_state_path("ollama-adapter") / "daemons")

    def write(self, port: int) -> None:
        """This process keeps a daemon on `port`. A directory that cannot be written is no fault."""
        import psutil

        mine = Entry(os.getpid(), psutil.Process().create_time(), _boot(), port)
        with contextlib.suppress(OSError):
            self.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            fresh = self._path(mine.pid).with_suffix(".new")
            fresh.write_bytes(msgspec.json.encode(mine))
            fresh.replace(self._path(mine.pid))

    def remove(self) -> None:
        """This process keeps none any more. Idempotent."""
        with contextlib.suppress(OSError):
            self._path(os.getpid()).unlink()

    def others(self) -> list[Entry]:
        """Those of other applications that are alive; the files of dead ones are removed."""
        alive: list[Entry] = []
        with contextlib.suppress(OSError):
            for path in sorted(self.directory.glob(f"*{SUFFIX}")):
                entry = _read(path)
                if entry is None or not _is_alive(entry):
                    path.unlink(missing_ok=True)
                elif entry.pid != os.getpid():
                    alive.append(entry)
        return alive

    def _path(self, pid: int) -> Path:
        return self.directory / f"{pid}{SUFFIX}"


def _read(path: Path) -> Entry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=Entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def _is_alive(entry: Entry) -> bool:
    import psutil

    try:
        started = psutil.Process(entry.pid).create_time()
    except (psutil.Error, ValueError, OverflowError):
        return False
    return entry.boot == _boot() and abs(started - entry.started) < CLOCK_TICK_S


def _boot() -> str:
    """What differs from one boot of the machine to the next."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        import psutil

        return str(round(psutil.boot_time()))
