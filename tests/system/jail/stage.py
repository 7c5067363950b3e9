"""Sets the stage for a program of the tests, then becomes it; run as a script by any Python.

argv[1] is JSON: "argv", and what is wanted of
"open": paths that everybody shall be able to reach, whatever lies above them (ours may lie in a home),
"hide": [path, place]: the path is also there, below a directory that only we can enter,
"refuse": user and network namespaces are switched off by policy, as an administrator does it,
"contain": root keeps the rights that it has in a container, which are few,
"uid": the user to become.
All of it is in a mount or user namespace of this process: the machine stays as it is.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys

NEWNS, NEWUSER = 0x20000, 0x10000000
BIND, REC, PRIVATE = 1 << 12, 1 << 14, 1 << 18
DROP_FROM_BOUNDS, LAST_CAPABILITY = 24, 40
IN_A_CONTAINER = {
    0,
    1,
    3,
    4,
    5,
    6,
    7,
    8,
    10,
    13,
    18,
    27,
    29,
    31,
}  # of Docker, if nobody asks for more
libc = ctypes.CDLL(None, use_errno=True)


def check(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: str, target: str, kind: str = "none", flags: int = 0, data: str = "") -> None:
    arguments = [os.fsencode(each) for each in (source, target, kind)]
    check(libc.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)))


def own_mounts() -> None:
    check(libc.unshare(NEWNS))
    mount("none", "/", flags=REC | PRIVATE)


def open_the_way(paths: list[str]) -> None:
    """In place of a closed directory stands an empty one, with nothing in it but the paths."""
    real = sorted(set(map(os.path.realpath, paths)))
    shut = {path: directory for path in real if (directory := closed_above(path))}
    if not shut:
        return
    own_mounts()
    fds = {path: os.open(path, os.O_PATH) for path in shut}
    for directory in set(shut.values()):
        mount("tmpfs", directory, "tmpfs", data="mode=0755")
    for path, fd in fds.items():
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{fd}", path, flags=BIND | REC)
        os.close(fd)


def closed_above(path: str) -> str:
    """The first directory on the way that is not for everybody; "" where there is none."""
    above = [path[:i] for i, letter in enumerate(path) if letter == "/" and i]
    return next((each for each in above if not os.stat(each).st_mode & 0o001), "")


def hide(path: str, place: str) -> None:
    os.mkdir(os.path.dirname(place), 0o700)
    try:
        own_mounts()
    except OSError:  # a link leads there, too
        os.symlink(path, place)
        return
    os.mkdir(place)
    mount(path, place, flags=BIND | REC)


def refuse_namespaces() -> None:
    """In a user namespace of our own, whose limits bind all that comes after us."""
    trial = os.fork()
    if trial == 0:
        try:
            enter_user_namespace()
        except OSError:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(trial, 0)
    if status == 0:  # else they are refused here anyway
        enter_user_namespace()


def enter_user_namespace() -> None:
    uid, gid = os.geteuid(), os.getegid()
    entered, entering = os.pipe()
    mapper = os.fork()
    if mapper == 0:  # only from outside can root map more users than itself
        os.close(entering)
        try:
            if os.read(entered, 1):
                write_maps(os.getppid(), uid, gid)
        except OSError:
            os._exit(1)
        os._exit(0)
    try:
        check(libc.unshare(NEWUSER))
        os.write(entering, b"+")
    finally:
        os.close(entering)
        _, status = os.waitpid(mapper, 0)
    if status:
        raise OSError(1, "the users cannot be mapped")
    for name in ("user", "net", "pid", "mnt", "ipc"):
        with open(f"/proc/sys/user/max_{name}_namespaces", "w") as file:
            file.write("0")


def write_maps(pid: int, uid: int, gid: int) -> None:
    own = {"setgroups": "deny", "uid_map": f"{uid} {uid} 1", "gid_map": f"{gid} {gid} 1"}
    everybody = {"uid_map": "0 0 65536", "gid_map": "0 0 65536"}
    for name, text in (own if uid else everybody).items():
        with open(f"/proc/{pid}/{name}", "w") as file:
            file.write(text)


def contain() -> None:
    if os.geteuid():
        return  # an ordinary user has no rights to lose
    for each in set(range(LAST_CAPABILITY + 1)) - IN_A_CONTAINER:
        check(libc.prctl(DROP_FROM_BOUNDS, each, 0, 0, 0))


def become(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def main() -> None:
    wanted = json.loads(sys.argv[1])
    open_the_way(wanted.get("open", []))
    if "hide" in wanted:
        hide(*wanted["hide"])
    if wanted.get("refuse"):
        refuse_namespaces()
    if wanted.get("contain"):
        contain()
    if wanted.get("uid"):
        become(wanted["uid"])
    os.execv(wanted["argv"][0], wanted["argv"])


if __name__ == "__main__":
    main()
