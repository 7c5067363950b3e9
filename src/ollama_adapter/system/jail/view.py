"""The files of the daemon's own mount namespace: what its policy lists, in its place, and nothing else.

The root is a small empty file system; listed paths are bound into it, read-only or without execution.
Symbolic links on the way to a listed path are made again, so that every path means what it meant. The
directories above a listed path are new and empty: nobody needs the right to walk through the old ones.
"""

from __future__ import annotations

import os
import stat
import struct

from ollama_adapter.system.jail.linux import syscall

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    from typing import Any

_REC, _PRIVATE = 1 << 14, 1 << 18
_RDONLY, _NOSUID, _NODEV, _NOEXEC = 1, 2, 4, 8  # the same bits for mount and mount_setattr
_DETACH = 2
_AT_FDCWD, _AT_RECURSIVE, _AT_EMPTY_PATH = -100, 0x8000, 0x1000
_CLONE, _CLOSE, _MOVE_EMPTY_PATH = 1, os.O_CLOEXEC, 4
_MOST_LINKS = 40
_BASE = "/tmp"  # any directory will do: the mount upon it is seen by us alone
_PROCESSES = "/proc"


def build(policy: dict[str, Any]) -> None:
    """Make it, and move into it. Needs a mount namespace of our own, and the right to mount."""
    syscall("mount", None, b"/", None, _REC | _PRIVATE, None)
    places, links = plan(policy)
    copies = [(_copy(path, how), path) for path, how in places.items()]  # before the base is hidden
    umask = os.umask(0o022)
    syscall("mount", b"tmpfs", _BASE.encode(), b"tmpfs", _NOSUID | _NODEV, b"mode=0755,size=1m")
    for fd, path in copies:
        _put(fd, _BASE + path)
    for path, target in links.items():
        if not os.path.lexists(_BASE + path):
            os.makedirs(os.path.dirname(_BASE + path), exist_ok=True)
            os.symlink(target, _BASE + path)
    _mount_processes()
    os.umask(umask)
    _set_attributes(_AT_FDCWD, _BASE, _RDONLY | _NOSUID | _NODEV, 0)
    os.chdir(_BASE)
    syscall("pivot_root", b".", b".")
    syscall("umount2", b".", _DETACH)
    os.chdir("/")


def plan(policy: dict[str, Any]) -> tuple[dict[str, int], dict[str, str]]:
    """Real paths and how to mount them, parents first; and the links that lead to them."""
    read_only = _RDONLY | _NOSUID | _NODEV
    places: dict[str, int] = {}
    links: dict[str, str] = {}
    for paths, how in (
        (policy["read"], read_only),
        (policy["execute"], read_only),
        (policy["write"], _NOSUID | _NODEV | _NOEXEC),
        (policy["devices"], _NOSUID | _NOEXEC),
    ):
        for path in paths:
            if not _is_beneath(path, _PROCESSES):
                places[_resolve(path, links)] = how
    kept: dict[str, int] = {}
    for path, how in sorted(places.items()):
        nearest = max((k for k in kept if _is_beneath(path, k)), key=len, default=None)
        if nearest is None or kept[nearest] != how:
            kept[path] = how
    return kept, links


def _is_beneath(path: str, parent: str) -> bool:
    return path == parent or path.startswith(parent.rstrip("/") + "/")


def _resolve(path: str, links: dict[str, str]) -> str:
    """The real path; the links on the way are noted."""
    at, ahead, left = "/", path.split("/")[::-1], _MOST_LINKS
    while ahead:
        name = ahead.pop()
        if name in ("", "."):
            continue
        if name == "..":
            at = os.path.dirname(at)
            continue
        step = os.path.join(at, name)
        if not os.path.islink(step):
            at = step
            continue
        left -= 1
        if left == 0:
            raise OSError(40, f"{path}: too many links")
        links[step] = target = os.readlink(step)
        ahead += target.split("/")[::-1]
        at = "/" if target.startswith("/") else at
    return at


def _copy(path: str, how: int) -> int:
    """The file or the tree as a mount of its own, which is nowhere yet."""
    fd = syscall("open_tree", _AT_FDCWD, os.fsencode(path), _CLONE | _CLOSE | _AT_RECURSIVE)
    _set_attributes(fd, "", how, _AT_RECURSIVE | _AT_EMPTY_PATH)
    return fd


def _put(fd: int, target: str) -> None:
    if stat.S_ISDIR(os.fstat(fd).st_mode):
        os.makedirs(target, exist_ok=True)
    elif not os.path.exists(target):
        os.makedirs(os.path.dirname(target), exist_ok=True)
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))
    syscall("move_mount", fd, b"", _AT_FDCWD, os.fsencode(target), _MOVE_EMPTY_PATH)
    os.close(fd)


def _mount_processes() -> None:
    """Of the new process namespace: nobody else's process is in it."""
    target = _BASE + _PROCESSES
    os.makedirs(target, exist_ok=True)
    how = _NOSUID | _NODEV | _NOEXEC
    syscall("mount", b"proc", os.fsencode(target), b"proc", how, None)
    _set_attributes(_AT_FDCWD, target, _RDONLY, 0)


def _set_attributes(at: int, path: str, attributes: int, flags: int) -> None:
    """Add attributes to a mount; those that it has, and that we may not take away, stay."""
    wanted = struct.pack("=QQQQ", attributes, 0, 0, 0)
    syscall("mount_setattr", at, os.fsencode(path), flags, wanted, len(wanted))
