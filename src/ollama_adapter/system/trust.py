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
from ollama_adapter.errors import PortTaken, UntrustedDaemon
from ollama_adapter.system.jail import JAIL_UID
from ollama_adapter.system.listeners import listener_uids

SERVICE_USER: Final = "ollama"  # whom the installer of Ollama makes


def check_listener(port: int, adopt_uids: Collection[int] = ()) -> None:
    """Whoever listens on `port` is us, root, the service user, or named. Raises UntrustedDaemon."""
    for uid in listener_uids(port) - {os.getuid(), 0, *adopt_uids}:
        if uid not in _service_uids():
            raise UntrustedDaemon(
                f"the daemon on {LOOPBACK}:{port} belongs to another user (uid {uid})",
                hint=f"if you trust that user with your prompts, set daemon.adopt_uids = [{uid}]; "
                "else set OLLAMA_HOST to another port",
            )


def check_spawned(port: int) -> None:
    """Whoever listens on the port of a daemon of ours is that daemon's user. Raises PortTaken."""
    ours = {os.geteuid(), *((JAIL_UID,) if os.geteuid() == 0 else ())}
    if not listener_uids(port) <= ours:
        raise PortTaken(
            f"a program of another user took the port {port}",
            hint="try again: another port is used each time",
        )


def check_program(path: str) -> None:
    """Nobody but root and us may replace this program or what it runs. Raises UntrustedDaemon."""
    real = Path(path).resolve(strict=True)
    for place in (real, *real.parents, *_runners(real)):
        status = place.stat()
        if status.st_uid not in (0, os.getuid()) or _anybody_may_write(place, status):
            raise UntrustedDaemon(
                f"others may replace the program {path}: {place} is open to them",
                hint=f"give {place} to root or to yourself, and take the write permission of others "
                "away (chmod o-w)",
            )


def check_store(path: Path) -> None:
    """Nobody else may put models here, or change one. Raises UntrustedDaemon."""
    inside = ((place, False) for place in (path, *_beneath(path)))
    around = ((place, True) for place in path.resolve().parents)
    for place, sticky in (*inside, *around):
        if _anybody_may_write(place, place.lstat(), sticky=sticky):
            raise UntrustedDaemon(
                f"anybody may change the models in {path}: {place} is open to all",
                hint=f"chmod -R o-w {place if sticky else path}, or use another store",
            )


def _runners(program: Path) -> Iterator[Path]:
    """Ollama starts what lies beside it, and hands it the prompts."""
    for place in (program.parent / "lib" / "ollama", program.parent.parent / "lib" / "ollama"):
        if place.is_dir():
            yield from (place, *_beneath(place))


def _beneath(place: Path) -> Iterator[Path]:
    """All that lies in a directory; of links, what they are, not what they lead to."""
    for directory, names, files in os.walk(place):
        yield from (Path(directory, each) for each in (*names, *files))


def _anybody_may_write(place: Path, status: os.stat_result, *, sticky: bool = True) -> bool:
    """In a sticky directory, such as /tmp, nobody can replace what is another's."""
    if stat.S_ISLNK(status.st_mode) or not status.st_mode & stat.S_IWOTH:
        return False
    return not (sticky and place.is_dir() and status.st_mode & stat.S_ISVTX)


def _service_uids() -> set[int]:
    try:
        import pwd

        return {pwd.getpwnam(SERVICE_USER).pw_uid}
    except (ImportError, KeyError):
        return set()
