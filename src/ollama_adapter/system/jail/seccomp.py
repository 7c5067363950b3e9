"""The system calls that a jailed daemon may not make.

A filter answers with an error, it kills nobody: a library that tries, and can do without, goes on. What
is refused everywhere: to look into other processes, to touch mounts, namespaces, keys, modules and the
clock, to use a socket that is not TCP over IPv4, and the ways around all this (io_uring, other
architectures, memfd, a second notifier). The guard adds: bind, listen and connect are asked about.
"""

from __future__ import annotations

import ctypes
import errno

from ollama_adapter.system.jail import bpf
from ollama_adapter.system.jail.bpf import Program
from ollama_adapter.system.jail.linux import SYSCALLS, machine, syscall

ALLOW = 0x7FFF0000
NOTIFY = 0x7FC00000
ERROR = 0x00050000

ARCHITECTURES = (0xC000003E, 0xC00000B7)  # x86_64, aarch64
X32_BIT = 0x40000000

NEW_NAMESPACES = 0x7E020080  # CLONE_NEW{TIME,NS,CGROUP,UTS,IPC,USER,PID,NET}
CLONE_THREAD = 0x10000
EXIT_SIGNAL = 0xFF  # clone has the signal where unshare has CLONE_NEWTIME
MSG_FASTOPEN = 0x20000000
MFD_NOEXEC_SEAL = 0x8
TERMINAL_INPUT = (0x5412, 0x541C, 0x5423)  # TIOCSTI, TIOCLINUX, TIOCSETD
IP_OPTIONS = 4  # a source route leaves for another host than the address says

_O_ACCMODE, _O_TRUNC = 0o3, 0o1000
_SET_MODE_FILTER = 1
_TSYNC, _NEW_LISTENER, _WAIT_KILLABLE = 1, 8, 32

NOT_PERMITTED = (
    *("ptrace", "process_vm_readv", "process_vm_writev", "process_madvise", "process_mrelease"),
    *("kcmp", "pidfd_getfd", "mount", "umount2", "pivot_root", "chroot", "move_mount", "open_tree"),
    *("open_tree_attr", "fsopen", "fsconfig", "fsmount", "fspick", "mount_setattr", "statmount"),
    *("listmount", "bpf", "perf_event_open", "keyctl", "add_key", "request_key", "kexec_load"),
    *("kexec_file_load", "init_module", "finit_module", "delete_module", "create_module"),
    *("userfaultfd", "setns", "name_to_handle_at", "open_by_handle_at", "acct", "swapon"),
    *("swapoff", "reboot", "settimeofday", "clock_settime", "clock_adjtime", "adjtimex"),
    *("sethostname", "setdomainname", "iopl", "ioperm", "modify_ldt", "quotactl", "quotactl_fd"),
    *("syslog", "vhangup", "lookup_dcookie", "nfsservctl", "uselib", "fanotify_init"),
    *("migrate_pages", "move_pages", "shmget", "msgget", "semget", "mq_open", "execveat"),
)
NOT_THERE = ("io_uring_setup", "io_uring_enter", "io_uring_register", "clone3")
ESCAPES_FROM_THE_GROUP = ("setsid", "setpgid")
UNSEEN_BY_LANDLOCK = (  # they work on paths that may not even be read
    *("chmod", "fchmod", "fchmodat", "fchmodat2", "chown", "lchown", "fchown", "fchownat"),
    *("utime", "utimes", "futimesat", "utimensat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr", "setxattrat", "removexattrat"),
    *("file_setattr", "inotify_add_watch"),
)
ATTRIBUTES = ("getxattr", "lgetxattr", "listxattr", "llistxattr", "getxattrat", "listxattrat")
ABOUT_A_PROCESS = (  # with its number; zero is the caller itself
    *("prlimit64", "sched_setaffinity", "sched_setparam", "sched_setscheduler", "sched_setattr"),
)
ABOUT_WHOM = ("setpriority", "ioprio_set")  # a kind, then a number
ASKED_ABOUT = ("bind", "listen", "connect")
TRUNCATE_SINCE, SIGNALS_SINCE = 3, 6  # versions of Landlock
SIGNALS = ("kill", "tgkill", "pidfd_send_signal")
ODD_SIGNALS = ("tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo")
SIGURG = 23  # Go's threads send it to each other all the time; nobody ends by it
TO_THE_NETWORK = ("socket", "socketpair", "bind", "listen", "connect")
SEALED = (
    *("socket", "socketpair", "bind", "connect", "listen", "open", "openat", "openat2", "creat"),
    *("execve", "execveat", "memfd_create"),
)

NOT_SERVING = (
    *(
        "execve",
        "fork",
        "vfork",
        "socket",
        "socketpair",
        "connect",
        "bind",
        "memfd_create",
        "unshare",
    ),
    *("kill", "tkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_open", "pidfd_send_signal"),
)


def refuse(code: int) -> bpf.Instruction:
    return bpf.decide(ERROR | code)


def jail_filter(
    column: int, *, own_space: bool, guarded: bool, sockets: bool = True, landlock: int = 99
) -> Program:
    """The daemon's filter. `own_space`: nobody else's files and processes are there to be touched.

    Without `sockets` there are none but those it was handed, and these stay as they are. `landlock`: what
    an older version of it does not cover, the filter and the guard do.
    """
    program = _entry(column)
    for name in NOT_PERMITTED:
        program += _on(name, column, [refuse(errno.EPERM)])
    for name in NOT_THERE:
        program += _on(name, column, [refuse(errno.ENOSYS)])
    for name in () if sockets else TO_THE_NETWORK:
        program += _on(name, column, [refuse(errno.EACCES)])
    rules = _rules()
    if not own_space:
        for name in (*ESCAPES_FROM_THE_GROUP, *UNSEEN_BY_LANDLOCK):
            program += _on(name, column, [refuse(errno.EPERM)])
        for name in ATTRIBUTES:
            program += _on(name, column, [refuse(errno.EOPNOTSUPP)])
        rules |= _shared_rules()
        if landlock < TRUNCATE_SINCE:
            program += _on("truncate", column, [refuse(errno.EPERM)])
            program += _on("openat2", column, [refuse(errno.ENOSYS)])
            rules |= {"open": _no_truncation(1), "openat": _no_truncation(2)}
    for name, rule in rules.items():
        program += _on(name, column, [*rule, bpf.decide(ALLOW)])
    if guarded:
        for name in ASKED_ABOUT:
            program += _on(name, column, [bpf.decide(NOTIFY)])
        if landlock < SIGNALS_SINCE:
            program += _asked_about_signals(column)
    return [*program, bpf.decide(ALLOW)]


def sealed_filter(column: int) -> Program:
    """For a process that has all that it will ever need open: nothing more is opened or started."""
    program = _entry(column)
    for name in SEALED:
        program += _on(name, column, [refuse(errno.EACCES)])
    return [*program, bpf.decide(ALLOW)]


def serving_filter(column: int, pid: int) -> Program:
    """For the process `pid`, which reads, writes and accepts: it starts nothing and opens no socket."""
    program = _entry(column)
    for name in (*NOT_PERMITTED, *NOT_SERVING):
        program += _on(name, column, [refuse(errno.EPERM)])
    for name in NOT_THERE:
        program += _on(name, column, [refuse(errno.ENOSYS)])
    new_process = [bpf.argument(0), *bpf.if_any_bit(CLONE_THREAD, [bpf.decide(ALLOW)])]
    program += _on("clone", column, [*new_process, refuse(errno.EPERM)])
    myself = [bpf.argument(0), *bpf.unless_one_of([pid], [refuse(errno.EPERM)])]
    program += _on("tgkill", column, [*myself, bpf.decide(ALLOW)])
    return [*program, bpf.decide(ALLOW)]


def _entry(column: int) -> Program:
    """Another architecture's numbers would mean other calls: it gets none."""
    program = [
        bpf.load(bpf.ARCHITECTURE),
        *bpf.unless_one_of([ARCHITECTURES[column]], [refuse(errno.ENOSYS)]),
        bpf.load(bpf.NUMBER),
    ]
    if column == 0:
        program += bpf.if_at_least(X32_BIT, [refuse(errno.ENOSYS)])
    return program


def _on(name: str, column: int, rule: Program) -> Program:
    number = SYSCALLS[name][column]
    return [] if number is None else bpf.if_equal(number, rule)


def _rules() -> dict[str, Program]:
    """What depends on the arguments. Each rule falls through where the call is harmless."""
    return _socket_rules() | _process_rules()


def _socket_rules() -> dict[str, Program]:
    no_fast_open = bpf.if_any_bit(MSG_FASTOPEN, [refuse(errno.EPERM)])
    return {
        "socket": [
            bpf.argument(0),
            *bpf.unless_one_of([2], [refuse(errno.EAFNOSUPPORT)]),  # AF_INET
            *_stream_types([1]),
            bpf.argument(2),
            *bpf.unless_one_of([0, 6], [refuse(errno.EPROTONOSUPPORT)]),  # TCP, and not MPTCP
        ],
        "socketpair": [  # a pair of datagram sockets could send to any path
            bpf.argument(0),
            *bpf.unless_one_of([1], [refuse(errno.EAFNOSUPPORT)]),  # AF_UNIX
            *_stream_types([1, 5]),
        ],
        "sendto": [bpf.argument(3), *no_fast_open],
        "sendmsg": [bpf.argument(2), *no_fast_open],
        "sendmmsg": [bpf.argument(3), *no_fast_open],
        "setsockopt": [
            bpf.argument(1),
            *bpf.unless_one_of([0], [bpf.decide(ALLOW)]),
            bpf.argument(2),
            *bpf.if_equal(IP_OPTIONS, [refuse(errno.EPERM)]),
        ],
    }


def _process_rules() -> dict[str, Program]:
    return {
        "unshare": [bpf.argument(0), *bpf.if_any_bit(NEW_NAMESPACES, [refuse(errno.EPERM)])],
        "clone": [
            bpf.argument(0),
            *bpf.if_any_bit(NEW_NAMESPACES & ~EXIT_SIGNAL, [refuse(errno.EPERM)]),
        ],
        "memfd_create": [  # Landlock lets anybody execute a file that is in no directory
            bpf.argument(1),
            *bpf.if_any_bit(MFD_NOEXEC_SEAL, [bpf.decide(ALLOW)]),
            refuse(errno.EPERM),
        ],
        "ioctl": [
            bpf.argument(1),
            *[each for n in TERMINAL_INPUT for each in bpf.if_equal(n, [refuse(errno.EPERM)])],
        ],
        "prctl": [  # PR_SET_PDEATHSIG, 0: it would outlive us
            bpf.argument(0),
            *bpf.unless_one_of([1], [bpf.decide(ALLOW)]),
            bpf.argument(1),
            *bpf.if_equal(0, [refuse(errno.EPERM)]),
        ],
        "personality": [
            bpf.argument(0),
            *bpf.unless_one_of([0, 0xFFFFFFFF], [refuse(errno.EPERM)]),
        ],
        "seccomp": [  # who answers the notifications decides
            bpf.argument(1),
            *bpf.if_any_bit(_NEW_LISTENER, [refuse(errno.EPERM)]),
        ],
    }


def _shared_rules() -> dict[str, Program]:
    """Where other processes are in sight: no hand on their limits and priorities."""
    only_self = bpf.unless_one_of([0], [refuse(errno.EPERM)])
    return {
        **{name: [bpf.argument(0), *only_self] for name in ABOUT_A_PROCESS},
        **{name: [bpf.argument(1), *only_self] for name in ABOUT_WHOM},
    }


def _asked_about_signals(column: int) -> Program:
    urgent = [bpf.argument(2), *bpf.if_equal(SIGURG, [bpf.decide(ALLOW)]), bpf.decide(NOTIFY)]
    program: Program = []
    for name in SIGNALS:
        program += _on(name, column, urgent if name == "tgkill" else [bpf.decide(NOTIFY)])
    for name in ODD_SIGNALS:
        program += _on(name, column, [refuse(errno.EPERM)])
    return program


def _no_truncation(flags: int) -> Program:
    """O_TRUNC works on what is opened for reading only, too."""
    return [
        bpf.argument(flags),
        bpf.mask(_O_ACCMODE | _O_TRUNC),
        *bpf.if_equal(_O_TRUNC, [refuse(errno.EPERM)]),
    ]


def _stream_types(kinds: list[int]) -> Program:
    wrong = [refuse(errno.EPROTONOSUPPORT)]
    return [bpf.argument(1), bpf.mask(0xF), *bpf.unless_one_of(kinds, wrong)]


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def install(program: Program, flags: int = 0) -> int:
    """Bind this process to the filter, for good. no_new_privs must be set."""
    code = bpf.assemble(program)
    packed = _FilterProgram(len(program), code)
    address = ctypes.addressof(packed)
    return syscall("seccomp", _SET_MODE_FILTER, flags, address)


def install_for_all_threads(program: Program) -> None:
    """The same, for every thread of this process at once."""
    if install(program, _TSYNC) != 0:
        raise OSError(errno.ESRCH, "a thread cannot be bound to the filter")


def install_with_listener(program: Program) -> int:
    """The same; the descriptor on which the guard is asked. Close-on-exec."""
    try:
        return install(program, _NEW_LISTENER | _WAIT_KILLABLE)
    except OSError as error:
        if error.errno != errno.EINVAL:  # before Linux 5.19: signals interrupt the question
            raise
        return install(program, _NEW_LISTENER)


def own_column() -> int:
    return machine()
