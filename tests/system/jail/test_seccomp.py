"""The filter, run instruction by instruction as the kernel would, for both processors."""

from __future__ import annotations

import errno
import struct

import pytest

from ollama_adapter.system.jail import bpf, seccomp
from ollama_adapter.system.jail.linux import SYSCALLS
from ollama_adapter.system.jail.seccomp import ALLOW, ARCHITECTURES, ERROR, NOTIFY

X86, ARM = 0, 1
HIGH = 0xDEAD_BEEF << 32  # what an int parameter never sees


def decide(
    column: int,
    name: str | int,
    *arguments: int,
    own_space: bool = False,
    guarded: bool = True,
    sockets: bool = True,
    architecture: int | None = None,
) -> int:
    program = seccomp.jail_filter(column, own_space=own_space, guarded=guarded, sockets=sockets)
    number = name if isinstance(name, int) else SYSCALLS[name][column]
    assert number is not None
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    which = ARCHITECTURES[column] if architecture is None else architecture
    return bpf.run(program, struct.pack("=IIQ6Q", number, which, 0, *padded))


def refused(code: int) -> int:
    return ERROR | code


def test_the_tables_agree_where_the_kernel_gave_both_processors_one_number() -> None:
    for name, (x86, arm) in SYSCALLS.items():
        if x86 is not None and arm is not None and min(x86, arm) >= 424:
            assert x86 == arm, name
    for column in (X86, ARM):
        numbers = [each[column] for each in SYSCALLS.values() if each[column] is not None]
        assert len(numbers) == len(set(numbers))


@pytest.mark.parametrize("column", [X86, ARM])
@pytest.mark.parametrize("own_space", [False, True])
@pytest.mark.parametrize("guarded", [False, True])
def test_what_is_refused_everywhere(column: int, own_space: bool, guarded: bool) -> None:
    for name in (*seccomp.NOT_PERMITTED, *seccomp.NOT_THERE):
        if SYSCALLS[name][column] is not None:
            code = errno.ENOSYS if name in seccomp.NOT_THERE else errno.EPERM
            told = decide(column, name, own_space=own_space, guarded=guarded)
            assert told == refused(code), name


@pytest.mark.parametrize("column", [X86, ARM])
def test_the_usual_calls_are_allowed_and_another_architecture_gets_none(column: int) -> None:
    for name in ("openat", "execve", "kill", "tgkill", "accept", "pidfd_open"):
        assert decide(column, name) == ALLOW
        other = ARCHITECTURES[1 - column]
        assert decide(column, name, architecture=other) == refused(errno.ENOSYS)
        assert decide(column, name, architecture=0x40000003) == refused(errno.ENOSYS)
    if column == X86:
        assert decide(column, 0x40000000 + 39) == refused(errno.ENOSYS)


@pytest.mark.parametrize("column", [X86, ARM])
@pytest.mark.parametrize("own_space", [False, True])
def test_without_sockets_none_is_made_or_taken_anywhere(column: int, own_space: bool) -> None:
    for name in seccomp.TO_THE_NETWORK:
        for first in (1, 2, 10, 16):
            told = decide(column, name, first, 1, own_space=own_space, guarded=False, sockets=False)
            assert told == refused(errno.EACCES), name
    for name in ("sendmsg", "recvmsg", "sendto", "shutdown", "openat"):
        if name in SYSCALLS:
            assert decide(column, name, guarded=False, sockets=False) == ALLOW


@pytest.mark.parametrize("column", [X86, ARM])
def test_sockets_are_tcp_over_ipv4(column: int) -> None:
    flags = 0x80000 | 0x800
    assert decide(column, "socket", 2, 1 | flags, 6) == ALLOW
    assert decide(column, "socket", HIGH | 2, HIGH | 1, HIGH) == ALLOW
    for family in (0, 1, 10, 16, 17, 38, 40, 44):
        assert decide(column, "socket", family, 1, 0) == refused(errno.EAFNOSUPPORT)
    for kind in (2, 3, 4, 5, 6, 10):
        assert decide(column, "socket", 2, kind | flags, 0) == refused(errno.EPROTONOSUPPORT)
    for protocol in (1, 17, 132, 136, 262):
        assert decide(column, "socket", 2, 1, protocol) == refused(errno.EPROTONOSUPPORT)
    assert decide(column, "socketpair", 1, 1 | flags, 0) == ALLOW
    assert decide(column, "socketpair", 1, 5, 0) == ALLOW
    assert decide(column, "socketpair", 1, 2, 0) == refused(errno.EPROTONOSUPPORT)


@pytest.mark.parametrize("column", [X86, ARM])
def test_rules_on_arguments(column: int) -> None:
    fast_open = seccomp.MSG_FASTOPEN
    cases: list[tuple[str, tuple[int, ...], int]] = [
        ("clone", (0x00010F00 | 17,), ALLOW),
        ("clone", (0x10000000 | 17,), refused(errno.EPERM)),
        ("clone", (0x40000000,), refused(errno.EPERM)),
        ("unshare", (0x400,), ALLOW),
        ("unshare", (0x80,), refused(errno.EPERM)),
        ("unshare", (0x20000,), refused(errno.EPERM)),
        ("sendto", (3, 0, 0, 0x4000), ALLOW),
        ("sendto", (3, 0, 0, 0x4000 | fast_open), refused(errno.EPERM)),
        ("sendmsg", (3, 0, fast_open), refused(errno.EPERM)),
        ("sendmmsg", (3, 0, 1, fast_open), refused(errno.EPERM)),
        ("setsockopt", (3, 6, 1), ALLOW),
        ("setsockopt", (3, 1, 4), ALLOW),
        ("setsockopt", (3, 0, 1), ALLOW),
        ("setsockopt", (3, 0, 4), refused(errno.EPERM)),
        ("memfd_create", (0, 1), refused(errno.EPERM)),
        ("memfd_create", (0, 1 | 8), ALLOW),
        ("ioctl", (0, 0x5401), ALLOW),
        ("ioctl", (0, HIGH | 0x5412), refused(errno.EPERM)),
        ("prctl", (1, 9), ALLOW),
        ("prctl", (1, 0), refused(errno.EPERM)),
        ("prctl", (38, 0), ALLOW),
        ("personality", (0xFFFFFFFF,), ALLOW),
        ("personality", (0x40000,), refused(errno.EPERM)),
        ("seccomp", (1, 0), ALLOW),
        ("seccomp", (1, 8), refused(errno.EPERM)),
        ("prlimit64", (0, 7), ALLOW),
        ("prlimit64", (4242, 7), refused(errno.EPERM)),
        ("setpriority", (0, 0, 10), ALLOW),
        ("setpriority", (0, 4242, 10), refused(errno.EPERM)),
    ]
    for name, arguments, expected in cases:
        assert decide(column, name, *arguments) == expected, (name, arguments)


@pytest.mark.parametrize("column", [X86, ARM])
def test_what_depends_on_the_level(column: int) -> None:
    for name in seccomp.ASKED_ABOUT:
        assert decide(column, name, guarded=True) == NOTIFY
        assert decide(column, name, guarded=False) == ALLOW
    for name in (*seccomp.ESCAPES_FROM_THE_GROUP, *seccomp.UNSEEN_BY_LANDLOCK):
        if SYSCALLS[name][column] is not None:
            assert decide(column, name, own_space=False) == refused(errno.EPERM)
            assert decide(column, name, own_space=True) == ALLOW


@pytest.mark.parametrize("column", [X86, ARM])
def test_a_sealed_process_opens_and_starts_nothing(column: int) -> None:
    program = seccomp.sealed_filter(column)
    for name in seccomp.SEALED:
        if (number := SYSCALLS[name][column]) is not None:
            data = struct.pack("=IIQ6Q", number, ARCHITECTURES[column], 0, *(0,) * 6)
            assert bpf.run(program, data) == refused(errno.EACCES)
    data = struct.pack(
        "=IIQ6Q", SYSCALLS["accept"][column] or 0, ARCHITECTURES[column], 0, *(0,) * 6
    )
    assert bpf.run(program, data) == ALLOW


@pytest.mark.parametrize("column", [X86, ARM])
def test_a_front_starts_nothing_and_opens_no_socket(column: int) -> None:
    program = seccomp.serving_filter(column, 4242)

    def decision(name: str, *arguments: int) -> int | None:
        number = SYSCALLS[name][column]
        padded = (*arguments, *(0,) * (6 - len(arguments)))
        data = struct.pack("=IIQ6Q", number or 0, ARCHITECTURES[column], 0, *padded)
        return None if number is None else bpf.run(program, data)

    for name in (*seccomp.NOT_SERVING, *seccomp.NOT_PERMITTED):
        assert decision(name) in (refused(errno.EPERM), None), name
    for name in seccomp.NOT_THERE:
        assert decision(name) == refused(errno.ENOSYS)
    for name in ("accept", "listen", "openat", "sendmsg", "setsockopt", "seccomp"):
        assert decision(name) == ALLOW
    threads = 0x3D0F00  # as the C library begins one
    assert decision("clone", HIGH | threads) == ALLOW
    assert decision("clone", 0x01200000 | 17) == refused(errno.EPERM)
    assert decision("tgkill", 4242, 4243, 6) == ALLOW
    assert decision("tgkill", 1, 1, 9) == refused(errno.EPERM)


def test_a_program_fits_the_kernel() -> None:
    for column in (X86, ARM):
        program = seccomp.jail_filter(column, own_space=False, guarded=True)
        assert len(program) <= 4096
        assert len(bpf.assemble(program)) == 8 * len(program)
    with pytest.raises(ValueError, match="255"):
        bpf.if_equal(1, [bpf.decide(ALLOW)] * 256)
