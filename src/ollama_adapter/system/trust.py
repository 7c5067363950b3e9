"""Whom we hand a prompt to: the owner of a daemon found running, of a program, of a model store.

A daemon on the port may be anybody's on a shared machine, and a program that others may replace is
theirs, whatever its name. What cannot be read (another system than Linux) is not checked.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Final

from ollama_adapter.config import LOOPBACK
from ollama_adapter.errors import UntrustedDaemon

LISTEN: Final = "0A"
TABLES: Final = (Path("/proc/net/tcp"), Path("/proc/net/tcp6"))
SERVICE_USER: Final = "ollama"  # whom the installer of Ollama makes


def check_listener(port: int, adopt_uids: Collection[int] = ()) -> None:
    """Whoever listens on `port` is us, root, the service user, or named. Raises UntrustedDaemon."""
    trusted = {os.getuid(), 0, *adopt_uids, *_service_uids()}
    for uid in listener_uids(port):
        if uid not in trusted:
            raise UntrustedDaemon(
                f"the daemon on {LOOPBACK}:{port} belongs to another user (uid {uid})",
                hint=f"if you trust that user with your prompts, set daemon.adopt_uids = [{uid}]; "
                "else set OLLAMA_HOST to another port",
            )


def listener_uids(port: int) -> set[int]:
    """The owners of the sockets that listen on a port; nobody where it cannot be read."""
    found: set[int] = set()
    for table in TABLES:
        try:
            lines = table.read_text("ascii").splitlines()[1:]
        except OSError:
            continue
        for fields in map(str.split, lines):
            if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                found.add(int(fields[7]))
    return found


def check_program(path: str) -> None:
    """Nobody but root and us may replace this program. Raises UntrustedDaemon."""
    for place in _with_parents(Path(path)):
        status = place.stat()
        if status.st_uid not in (0, os.getuid()) or _anybody_may_write(place, status):
            raise UntrustedDaemon(
                f"others may replace the program {path}: {place} is open to them",
                hint=f"give {place} to root or to yourself, and take the write permission of others "
                "away (chmod o-w)",
            )


def check_store(path: Path) -> None:
    """Nobody else may put models here. Raises UntrustedDaemon."""
    if _anybody_may_write(path, path.stat(), sticky=False):
        raise UntrustedDaemon(
            f"anybody may change the models in {path}",
            hint=f"chmod o-w {path}, or use another store",
        )


def _with_parents(path: Path) -> Iterator[Path]:
    real = path.resolve(strict=True)
    yield real
    yield from real.parents


def _anybody_may_write(place: Path, status: os.stat_result, *, sticky: bool = True) -> bool:
    """In a sticky directory, such as /tmp, nobody can replace what is another's."""
    if not status.st_mode & stat.S_IWOTH:
        return False
    return not (sticky and place.is_dir() and status.st_mode & stat.S_ISVTX)


def _service_uids() -> set[int]:
    try:
        import pwd

        return {pwd.getpwnam(SERVICE_USER).pw_uid}
    except (ImportError, KeyError):
        return set()
