"""The steps that take something away from the process that will become the daemon.

Each raises OSError where it cannot be done; the trampoline then starts nothing.
"""

from __future__ import annotations

import os
import resource
import struct

from ollama_adapter.system.jail import landlock, seccomp
from ollama_adapter.system.jail.linux import prctl, syscall

TYPE_CHECKING = False  # as typing's, whose import would cost more than all of this
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

_SET_PDEATHSIG, _SET_DUMPABLE, _CAPBSET_DROP, _SET_NO_NEW_PRIVS, _CAP_AMBIENT = 1, 4, 24, 38, 47
_CLEAR_ALL = 4
_SIGKILL = 9
_CAPABILITY_VERSION = 0x20080522
_LAST_FD = 1 << 20


def die_with_parent() -> None:
    """SIGKILL when the process that spawned us ends. A change of user clears it: say it again then."""
    prctl(_SET_PDEATHSIG, _SIGKILL)


def limit_resources(policy: dict[str, Any]) -> None:
    """Not the address space: models are mapped, and GPUs reserve far more than they use."""
    limits = (
        (resource.RLIMIT_DATA, policy["max_data_bytes"]),
        (resource.RLIMIT_FSIZE, policy["max_file_bytes"]),
        (resource.RLIMIT_NPROC, policy["max_processes"]),
        (resource.RLIMIT_NOFILE, policy["max_files"]),
    )
    for kind, limit in limits:
        if limit:
            _, hard = resource.getrlimit(kind)
            value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(kind, (value, value))


def leave_root(uid: int, own: Sequence[str] = ()) -> None:
    """Become `uid`, if we are root; the directories in `own` become its property."""
    if os.geteuid() != 0:
        return
    if uid == 0:
        raise OSError(1, "root's daemon needs a user to become")
    for path in own:
        _give_away(path, uid)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _give_away(directory: str, uid: int) -> None:
    """What is root's in it. Never through a link, never a file that lies elsewhere, too."""
    os.chown(directory, uid, uid, follow_symlinks=False)
    with os.scandir(directory) as entries:
        for entry in entries:
            about = entry.stat(follow_symlinks=False)
            if entry.is_dir(follow_symlinks=False):
                _give_away(entry.path, uid)
            elif about.st_uid == 0 and about.st_nlink == 1:
                os.chown(entry.path, uid, uid, follow_symlinks=False)


def drop_bounding_set() -> None:
    """No program that we start can give a capability back. Needs one itself: before the user changes."""
    if os.geteuid() == 0 or _has_capabilities():
        with open("/proc/sys/kernel/cap_last_cap") as file:
            last = int(file.read())
        for each in range(last + 1):
            prctl(_CAPBSET_DROP, each)


def drop_capabilities() -> None:
    """None is left, and none can come back."""
    prctl(_SET_NO_NEW_PRIVS, 1)
    prctl(_CAP_AMBIENT, _CLEAR_ALL)
    header = struct.pack("=Ii", _CAPABILITY_VERSION, 0)
    syscall("capset", header, bytes(24))
    if _has_capabilities():
        raise OSError(1, "capabilities are left")


def _has_capabilities() -> bool:
    with open("/proc/self/status") as file:
        lines = [each for each in file if each.startswith(("CapPrm", "CapEff"))]
    return any(int(each.split()[1], 16) for each in lines)


def undumpable() -> None:
    """Nobody of the same user may look into us, or take our descriptors."""
    prctl(_SET_DUMPABLE, 0)


def close_descriptors(keep: list[int]) -> None:
    """Everything but 0, 1, 2 and `keep`."""
    start = 3
    for each in sorted(keep):
        os.closerange(start, each)
        start = each + 1
    os.closerange(start, _LAST_FD)


def restrict_files(policy: dict[str, Any]) -> None:
    """Landlock. Where nothing else guards the network, the ports that it may listen on, at least."""
    ports = [0, *policy["ports"]] if policy["level"] == "partial" else None
    rules = landlock.Ruleset(_landlock(policy), bind_ports=ports)
    for paths, rights in (
        (policy["read"], landlock.READ),
        (policy["write"], landlock.READ | landlock.WRITE),
        (policy["execute"], landlock.RUN),
        (policy["devices"], landlock.DEVICE),
    ):
        for path in paths:
            rules.allow(path, rights)
            if not os.access(path, os.R_OK | (os.W_OK if rights & landlock.WRITE_FILE else 0)):
                raise PermissionError(13, os.strerror(13), path)
    rules.enforce()


def restrict_calls(policy: dict[str, Any]) -> int | None:
    """The seccomp filter; the descriptor on which the guard is asked, if there is to be one."""
    guarded = policy["level"] == "guard" and policy["sockets"]
    program = seccomp.jail_filter(
        seccomp.own_column(),
        own_space=policy["level"] == "namespaces",
        guarded=guarded,
        sockets=policy["sockets"],
        landlock=_landlock(policy),
    )
    if guarded:
        return seccomp.install_with_listener(program)
    seccomp.install(program)
    return None


def _landlock(policy: dict[str, Any]) -> int:
    return min(landlock.abi(), int(policy["landlock"]))


def check_executable(path: str) -> None:
    """Raises OSError, with a reason, where the program cannot be run by who we are now."""
    if not path.startswith("/"):
        raise OSError(2, "a jailed program is named by its absolute path")
    os.stat(path)
    if not os.access(path, os.X_OK):
        raise OSError(13, f"{path} cannot be run by user {os.geteuid()}")
