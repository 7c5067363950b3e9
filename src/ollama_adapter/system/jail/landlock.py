"""Which files a daemon may read, write and execute; which signals and abstract sockets reach out of it.

Every right that this kernel knows is taken away, then given back beneath the policy's paths. A path that
does not exist is an error, never a hole. Landlock also keeps a jailed process from tracing one outside.
It does not hide that a path exists (`stat`), and it does not cover files that lie in no directory
(memfd): seccomp refuses those.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable

from ollama_adapter.system.jail.linux import syscall

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15
MAKE_CHAR, MAKE_BLOCK = 1 << 6, 1 << 11
BASIC = (1 << 13) - 1
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV

READ = READ_FILE | READ_DIR
WRITE = (BASIC | REFER | TRUNCATE) & ~(EXECUTE | MAKE_CHAR | MAKE_BLOCK)
RUN = EXECUTE | READ_FILE
DEVICE = READ_FILE | WRITE_FILE | IOCTL_DEV

BIND_TCP = 1
SCOPES = 3  # abstract unix sockets, signals

_VERSION, _PATH_BENEATH, _NET_PORT = 1, 1, 2


def abi() -> int:
    """The version of Landlock that runs here; 0 where there is none."""
    try:
        return syscall("landlock_create_ruleset", None, 0, _VERSION)
    except OSError:
        return 0


def handled_files(version: int) -> int:
    """Every file right that a kernel of this version can take away."""
    rights = BASIC
    for since, right in ((2, REFER), (3, TRUNCATE), (5, IOCTL_DEV)):
        if version >= since:
            rights |= right
    return rights


class Ruleset:
    """What will be allowed; `enforce` makes it so, for this process and all that it starts."""

    def __init__(self, version: int, *, bind_ports: Iterable[int] | None = None) -> None:
        if version < 1:
            raise OSError(95, "this kernel has no Landlock")
        self._files = handled_files(version)
        network = BIND_TCP if version >= 4 and bind_ports is not None else 0
        attributes = struct.pack("=Q", self._files)
        if version >= 4:
            attributes += struct.pack("=Q", network)
        if version >= 6:
            attributes += struct.pack("=Q", SCOPES)
        self._fd = syscall("landlock_create_ruleset", attributes, len(attributes), 0)
        for port in bind_ports or () if network else ():
            self._add(_NET_PORT, struct.pack("=QQ", BIND_TCP, port))

    def allow(self, path: str, rights: int) -> None:
        """Give rights back beneath `path`."""
        fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(fd).st_mode):
                rights &= FILE_RIGHTS
            self._add(_PATH_BENEATH, struct.pack("=Qi", rights & self._files, fd))
        finally:
            os.close(fd)

    def enforce(self) -> None:
        """From now on, for good. no_new_privs must be set."""
        syscall("landlock_restrict_self", self._fd, 0)
        os.close(self._fd)

    def _add(self, kind: int, rule: bytes) -> None:
        buffer = ctypes.create_string_buffer(rule, len(rule))
        syscall("landlock_add_rule", self._fd, kind, buffer, 0)
