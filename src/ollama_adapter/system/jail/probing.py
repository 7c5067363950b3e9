"""What this machine lets a jail do: each thing is tried, in a process of its own that then ends."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Callable

from ollama_adapter.system.jail import JAIL_UID, confine, landlock, namespaces, seccomp, view
from ollama_adapter.system.jail.linux import prctl, syscall

_GET_ACTION_AVAIL = 2
_SET_DUMPABLE = 4
_NOTHING = {"read": (), "write": (), "execute": (), "devices": ()}


def probe() -> dict[str, object]:
    """Facts for `levels.decide`: the reason where something cannot be had, "" where it can."""
    return {
        "landlock": landlock.abi(),
        "seccomp": _reason(_try_filter),
        "notify": _reason(_try_notify),
        "namespaces": _reason(_try_namespaces),
    }


def _reason(attempt: Callable[[], None]) -> str:
    """Run the attempt in a child, which ends; why it failed."""
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        try:
            attempt()
            os.write(telling, b"+")
        except OSError as error:
            os.write(telling, (error.strerror or "it failed").encode())
        finally:
            os._exit(0)
    os.close(telling)
    with os.fdopen(told, "rb") as pipe:
        reason = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return "" if reason == "+" else reason or f"the attempt ended ({status})"


def _try_filter() -> None:
    prctl(38, 1)
    seccomp.install(seccomp.jail_filter(seccomp.own_column(), own_space=False, guarded=False))


def _try_notify() -> None:
    """A notifier, and the right to take a descriptor out of a child: as the user who will take it."""
    action = ctypes.create_string_buffer(struct.pack("=I", seccomp.NOTIFY), 4)
    syscall("seccomp", _GET_ACTION_AVAIL, 0, action)
    if os.geteuid() == 0:
        confine.leave_root(JAIL_UID)
        prctl(_SET_DUMPABLE, 1)  # as a program that is started anew is
    ready, wait = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(wait)
        confine.die_with_parent()
        os.read(ready, 1)
        os._exit(0)
    try:
        pidfd = syscall("pidfd_open", child, 0)
        os.close(syscall("pidfd_getfd", pidfd, ready, 0))
    finally:
        os.close(wait)
        os.waitpid(child, 0)


def _try_namespaces() -> None:
    """All that the level needs, up to the new root."""
    namespaces.enter()
    child = os.fork()
    if child == 0:
        confine.die_with_parent()
        try:
            namespaces.raise_loopback()
            view.build(dict(_NOTHING))
        except OSError as error:
            os._exit(error.errno or 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        code = os.waitstatus_to_exitcode(status)
        raise OSError(code, os.strerror(code) if code > 0 else f"ended by signal {-code}")
