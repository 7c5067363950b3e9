"""What a hostile daemon would try, each attempt a small function; run as a script, in a jail and without.

An attempt returns when it has succeeded, and raises OSError when it was refused, or Failed when nothing
came of it. It runs in a child of its own, which is ended after a moment. The targets come as JSON in
argv[1]; how each attempt ended is written as JSON to a file there: "succeeded", or why not.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import itertools
import json
import mmap
import os
import platform
import select
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PATIENCE_S = 0.4
MOMENT_S = 1.5
SUCCEEDED = "succeeded"

X86 = platform.machine() == "x86_64"
libc = ctypes.CDLL(None, use_errno=True)
Attempt = Callable[[dict[str, Any]], object]
ATTACKS: dict[str, Attempt] = {}


class Failed(Exception):
    """Nothing was refused, and nothing came of it."""


def attack(attempt: Attempt) -> Attempt:
    ATTACKS[attempt.__name__] = attempt
    return attempt


def call(x86: int, arm: int, *arguments: Any) -> int:
    passed = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(libc.syscall(ctypes.c_long(x86 if X86 else arm), *passed))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def reaches_the_kernel(x86: int, arm: int, *arguments: Any) -> None:
    """For what must not really be done: with nonsense arguments, who may do it is told so."""
    try:
        call(x86, arm, *arguments)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.ENOSYS, errno.EACCES, errno.EOPNOTSUPP):
            raise


def expect(condition: object) -> None:
    if not condition:
        raise Failed


# --- the network


def greeted(sock: socket.socket) -> None:
    sock.settimeout(PATIENCE_S)
    expect(sock.recv(16) == b"hello")


def dial(
    where: tuple[Any, ...], family: int = socket.AF_INET, kind: int = 1, proto: int = 0
) -> None:
    with socket.socket(family, kind, proto) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(where)
        greeted(sock)


def ask_by_datagram(where: tuple[Any, ...], family: int = socket.AF_INET) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"prompt", where)
        greeted(sock)


@attack
def dial_out(t: Any) -> None:
    dial((t["outside"], t["tcp"]))


@attack
def dial_out_without_waiting(t: Any) -> None:
    with socket.socket() as sock:
        sock.setblocking(False)
        code = sock.connect_ex((t["outside"], t["tcp"]))
        if code not in (0, errno.EINPROGRESS):
            raise OSError(code, os.strerror(code))
        expect(select.select([], [sock], [], PATIENCE_S)[1])
        greeted(sock)


@attack
def dial_out_while_another_thread_changes_the_address(t: Any) -> None:
    """The check sees 127.0.0.1, the kernel should not see something else."""
    allowed = socket.create_server(("127.0.0.1", 0), backlog=4000)
    port = allowed.getsockname()[1]
    good = struct.pack("=H", 2) + struct.pack(">H", port) + socket.inet_aton("127.0.0.1") + bytes(8)
    bad = good[:2] + struct.pack(">H", t["tcp"]) + socket.inet_aton(t["outside"]) + bytes(8)
    memory = ctypes.create_string_buffer(good, 16)
    going = True

    def flip() -> None:
        for each in itertools.cycle((bad, good)):  # threads take turns at the end of a round
            memory.raw = each
            if not going:
                return

    flipper = threading.Thread(target=flip, daemon=True)
    flipper.start()
    last = 0
    try:
        end = time.monotonic() + MOMENT_S / 4
        while time.monotonic() < end:
            with socket.socket() as sock:
                sock.settimeout(PATIENCE_S)
                os.set_blocking(sock.fileno(), True)
                if libc.connect(sock.fileno(), memory, 16) == 0:
                    if sock.getpeername()[0] == t["outside"]:
                        return
                else:
                    last = ctypes.get_errno()
    finally:
        going = False
        flipper.join()
        allowed.close()
    if last:
        raise OSError(last, os.strerror(last))
    raise Failed


@attack
def dial_another_program_on_the_loopback(t: Any) -> None:
    dial(("127.0.0.1", t["tcp"]))


@attack
def dial_another_loopback_address(t: Any) -> None:
    dial(("127.0.0.2", t["tcp"]))


@attack
def dial_any_address(t: Any) -> None:
    dial(("0.0.0.0", t["tcp"]))


@attack
def dial_out_by_ipv6(t: Any) -> None:
    dial((t["outside6"], t["tcp6"]), socket.AF_INET6)


@attack
def dial_out_by_a_mapped_address(t: Any) -> None:
    dial(("::ffff:" + t["outside"], t["tcp"]), socket.AF_INET6)


@attack
def dial_out_by_mptcp(t: Any) -> None:
    dial((t["outside"], t["tcp"]), proto=262)


@attack
def dial_out_by_fast_open(t: Any) -> None:
    with socket.socket() as sock:
        sock.sendto(b"prompt", 0x20000000, (t["outside"], t["tcp"]))
        greeted(sock)


@attack
def dial_out_by_fast_open_message(t: Any) -> None:
    with socket.socket() as sock:
        sock.sendmsg([b"prompt"], [], 0x20000000, (t["outside"], t["tcp"]))
        greeted(sock)


@attack
def dial_out_by_deferred_fast_open(t: Any) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
        sock.connect((t["outside"], t["tcp"]))
        sock.send(b"prompt")
        greeted(sock)


@attack
def ask_the_resolver(t: Any) -> None:
    ask_by_datagram(("127.0.0.53", t["udp"]))


@attack
def ask_the_resolver_by_tcp(t: Any) -> None:
    dial(("127.0.0.53", t["tcp"]))


@attack
def resolve_a_name(t: Any) -> None:
    ask_by_datagram((t["outside"], t["dns"]))


@attack
def send_a_datagram(t: Any) -> None:
    ask_by_datagram((t["outside"], t["udp"]))


@attack
def send_a_datagram_by_ipv6(t: Any) -> None:
    ask_by_datagram((t["outside6"], t["udp6"]), socket.AF_INET6)


@attack
def send_a_light_datagram(t: Any) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136).close()


@attack
def ping(t: Any) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP).close()


@attack
def raw_socket(t: Any) -> None:
    socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW).close()


@attack
def packet_socket(t: Any) -> None:
    socket.socket(17, socket.SOCK_RAW, 0).close()


@attack
def netlink_socket(t: Any) -> None:
    socket.socket(16, socket.SOCK_RAW, 0).close()


@attack
def vsock_socket(t: Any) -> None:
    socket.socket(40, socket.SOCK_STREAM, 0).close()


@attack
def crypto_socket(t: Any) -> None:
    socket.socket(38, socket.SOCK_SEQPACKET, 0).close()


@attack
def source_route(t: Any) -> None:
    """A route in the header leads the connection elsewhere, whatever its address says."""
    with socket.socket() as sock:
        option = bytes((131, 7, 4)) + socket.inet_aton(t["outside"]) + b"\0"
        sock.setsockopt(socket.IPPROTO_IP, 4, option)


@attack
def dial_a_unix_socket(t: Any) -> None:
    dial(t["unix"], socket.AF_UNIX)


@attack
def dial_an_abstract_socket(t: Any) -> None:
    dial("\0" + t["abstract"], socket.AF_UNIX)


@attack
def send_to_a_unix_socket(t: Any) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.sendto(b"prompt", t["unix_datagram"])


@attack
def send_to_a_unix_socket_from_a_pair(t: Any) -> None:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other:
        ours.sendto(b"prompt", t["unix_datagram"])


@attack
def pass_a_file_out(t: Any) -> None:
    with socket.socket(socket.AF_UNIX) as sock, open(sys.executable, "rb") as file:
        sock.connect(t["unix"])
        socket.send_fds(sock, [b"prompt"], [file.fileno()])


@attack
def io_uring(t: Any) -> None:
    call(425, 425, 4, ctypes.create_string_buffer(120))


def visited(sock: socket.socket) -> None:
    """Somebody outside keeps trying our ports: it comes through."""
    sock.settimeout(PATIENCE_S)
    visitor, _ = sock.accept()
    with visitor:
        visitor.send(b"welcome")


@attack
def listen_on_every_address(t: Any) -> None:
    with socket.socket() as sock:
        sock.bind(("0.0.0.0", t["visited"][0]))
        sock.listen()
        visited(sock)


@attack
def listen_on_the_outside_address(t: Any) -> None:
    with socket.socket() as sock:
        sock.bind((t["outside"], t["visited"][1]))
        sock.listen()
        visited(sock)


@attack
def listen_on_every_ipv6_address(t: Any) -> None:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", t["visited"][2]))
        sock.listen()
        visited(sock)


@attack
def listen_without_an_address(t: Any) -> None:
    """The kernel then chooses a port, on every address."""
    with socket.socket() as sock:
        sock.listen()
        Path(t["own"], "port").write_text(str(sock.getsockname()[1]))
        visited(sock)


@attack
def take_over_a_port(t: Any) -> None:
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(("127.0.0.1", t["shared"]))
        sock.listen()
        visited(sock)


# --- files


@attack
def read_a_key(t: Any) -> None:
    expect(Path(t["secret"]).read_text())


@attack
def read_the_passwords(t: Any) -> None:
    expect(Path("/etc/shadow").read_text())


@attack
def read_the_users(t: Any) -> None:
    expect("root" in Path("/etc/passwd").read_text())


@attack
def list_a_home(t: Any) -> None:
    expect(os.listdir(os.path.dirname(t["secret"])))


@attack
def list_the_root(t: Any) -> None:
    expect("home" in os.listdir("/"))


@attack
def read_by_a_symbolic_link(t: Any) -> None:
    link = os.path.join(t["own"], "symbolic")
    os.symlink(t["secret"], link)
    expect(Path(link).read_text())


@attack
def read_by_a_hard_link(t: Any) -> None:
    link = os.path.join(t["own"], "hard")
    os.link(t["secret"], link)
    expect(Path(link).read_text())


@attack
def take_a_file_by_its_handle(t: Any) -> None:
    handle = ctypes.create_string_buffer(struct.pack("=Ii", 128, 0), 136)
    mount = ctypes.c_int()
    call(303, 264, -100, t["secret"].encode(), handle, ctypes.byref(mount), 0)


@attack
def move_a_file_here(t: Any) -> None:
    os.rename(t["movable"], os.path.join(t["own"], "moved"))


@attack
def swap_files(t: Any) -> None:
    mine = os.path.join(t["own"], "mine")
    Path(mine).write_text("mine")
    call(316, 276, -100, mine.encode(), -100, t["swappable"].encode(), 2)


@attack
def write_elsewhere(t: Any) -> None:
    Path(t["elsewhere"], "written").write_text("prompt")


@attack
def append_to_a_file(t: Any) -> None:
    with open(t["secret"], "a") as file:
        file.write("prompt")


@attack
def write_to_the_temporary_directory(t: Any) -> None:
    path = Path(t["tmp"], f"jail-attack-{os.getpid()}")
    path.write_text("prompt")
    path.unlink()


@attack
def write_to_shared_memory(t: Any) -> None:
    path = Path("/dev/shm", f"jail-attack-{os.getpid()}")
    path.write_text("prompt")
    path.unlink()


@attack
def write_to_what_is_read_only(t: Any) -> None:
    Path(t["readable"], "written").write_text("prompt")


@attack
def truncate_a_file(t: Any) -> None:
    os.truncate(t["truncatable"], 0)


@attack
def remove_a_file(t: Any) -> None:
    os.unlink(t["removable"])


@attack
def make_a_directory(t: Any) -> None:
    os.mkdir(os.path.join(t["elsewhere"], "made"))


@attack
def make_a_pipe(t: Any) -> None:
    os.mkfifo(os.path.join(t["elsewhere"], "fifo"))


@attack
def make_a_device(t: Any) -> None:
    os.mknod(os.path.join(t["own"], "zero"), 0o20600, os.makedev(1, 5))


@attack
def change_the_mode(t: Any) -> None:
    os.chmod(t["secret"], 0o644)


@attack
def change_the_owner(t: Any) -> None:
    os.chown(t["secret"], os.getuid(), os.getgid())


@attack
def change_the_times(t: Any) -> None:
    os.utime(t["secret"], (1, 1))


@attack
def set_an_attribute(t: Any) -> None:
    os.setxattr(t["secret"], "user.note", b"prompt")


@attack
def read_attributes(t: Any) -> None:
    os.listxattr(t["secret"])


@attack
def watch_a_directory(t: Any) -> None:
    watch = libc.inotify_init1(0)
    if libc.inotify_add_watch(watch, os.path.dirname(t["secret"]).encode(), 0xFFF) < 0:
        raise OSError(ctypes.get_errno(), "inotify_add_watch")


@attack
def see_that_a_path_exists(t: Any) -> None:
    os.stat(t["elsewhere"])


@attack
def read_the_memory_of_the_machine(t: Any) -> None:
    os.close(os.open("/dev/kmsg", os.O_RDONLY))


@attack
def read_the_kernel_log(t: Any) -> None:
    call(103, 116, 10, None, 0)


@attack
def read_the_disk(t: Any) -> None:
    disks = [line.split()[3] for line in Path("/proc/partitions").read_text().splitlines()[2:]]
    expect(disks)
    os.close(os.open("/dev/" + disks[0], os.O_RDONLY))


@attack
def open_a_terminal(t: Any) -> None:
    for fd in os.openpty():
        os.close(fd)


@attack
def type_into_a_terminal(t: Any) -> None:
    _, slave = os.openpty()
    os.setsid()
    fcntl.ioctl(slave, 0x540E, 0)  # TIOCSCTTY
    fcntl.ioctl(slave, 0x5412, b"x")  # TIOCSTI


@attack
def change_the_kernels_settings(t: Any) -> None:
    os.close(os.open("/proc/sys/kernel/hostname", os.O_WRONLY))


@attack
def change_a_control_group(t: Any) -> None:
    os.mkdir("/sys/fs/cgroup/jail-attack")
    os.rmdir("/sys/fs/cgroup/jail-attack")


# --- programs


@attack
def run_a_shell(t: Any) -> None:
    run(["/bin/sh", "-c", "exit 0"])


def run(argv: list[str]) -> None:
    child = os.fork()
    if child == 0:
        try:
            os.execv(argv[0], argv)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), f"the program ended with {code}")


@attack
def run_a_program_of_its_own(t: Any) -> None:
    path = os.path.join(t["own"], "program")
    with open(path, "wb") as file:
        file.write(Path(sys.executable).read_bytes())
        os.fchmod(file.fileno(), 0o755)
    run([path, "-I", "-S", "-c", ""])


@attack
def run_a_script_of_its_own(t: Any) -> None:
    descriptor = os.open(os.path.join(t["own"], "script"), os.O_CREAT | os.O_WRONLY, 0o777)
    os.write(descriptor, b"#!" + sys.executable.encode() + b" -IS\n")
    os.close(descriptor)
    run([os.path.join(t["own"], "script")])


@attack
def run_from_memory(t: Any) -> None:
    fd = os.memfd_create("program")
    os.write(fd, Path(sys.executable).read_bytes())
    run([f"/proc/self/fd/{fd}", "-I", "-S", "-c", ""])


@attack
def run_by_descriptor(t: Any) -> None:
    fd = os.open(sys.executable, os.O_RDONLY)
    child = os.fork()
    if child == 0:
        argv = (ctypes.c_char_p * 5)(b"python", b"-IS", b"-c", b"", None)
        try:
            call(322, 281, fd, b"", argv, None, 0x1000)
        except OSError as error:
            os._exit(error.errno or 1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code:
        raise OSError(abs(code), "execveat")


@attack
def run_a_shell_by_the_loader(t: Any) -> None:
    loader = "/lib64/ld-linux-x86-64.so.2" if X86 else "/lib/ld-linux-aarch64.so.1"
    run([loader, os.path.realpath("/bin/sh"), "-c", "exit 0"])


# --- other processes


@attack
def trace_a_process(t: Any) -> None:
    call(101, 117, 16, t["stranger"], 0, 0)  # PTRACE_ATTACH


@attack
def seize_a_process(t: Any) -> None:
    call(101, 117, 0x4206, t["stranger"], 0, 0)


@attack
def read_the_memory_of_a_process(t: Any) -> None:
    into = ctypes.create_string_buffer(8)
    local = struct.pack("=QQ", ctypes.addressof(into), 8)
    remote = struct.pack("=QQ", t["address"], 8)
    call(310, 270, t["stranger"], local, 1, remote, 1, 0)


@attack
def write_the_memory_of_a_process(t: Any) -> None:
    source = ctypes.create_string_buffer(b"changed", 8)
    local = struct.pack("=QQ", ctypes.addressof(source), 8)
    remote = struct.pack("=QQ", t["address"], 8)
    call(311, 271, t["stranger"], local, 1, remote, 1, 0)


@attack
def open_the_memory_of_a_process(t: Any) -> None:
    os.close(os.open(f"/proc/{t['stranger']}/mem", os.O_RDONLY))


@attack
def read_the_environment_of_a_process(t: Any) -> None:
    expect(Path(f"/proc/{t['stranger']}/environ").read_bytes())


@attack
def read_the_arguments_of_a_process(t: Any) -> None:
    expect(Path(f"/proc/{t['stranger']}/cmdline").read_bytes())


@attack
def list_the_processes(t: Any) -> None:
    expect(str(t["stranger"]) in os.listdir("/proc"))


@attack
def list_the_connections(t: Any) -> None:
    expect(f":{t['tcp']:04X}" in Path("/proc/net/tcp").read_text())


@attack
def take_a_descriptor_of_a_process(t: Any) -> None:
    call(438, 438, os.pidfd_open(t["stranger"]), 0, 0)


@attack
def open_a_descriptor_of_a_process(t: Any) -> None:
    os.close(os.open(f"/proc/{t['stranger']}/fd/0", os.O_RDONLY))


@attack
def signal_a_process(t: Any) -> None:
    os.kill(t["stranger"], signal.SIGCONT)


@attack
def signal_a_thread(t: Any) -> None:
    call(234, 131, t["stranger"], t["stranger"], signal.SIGCONT)


@attack
def signal_by_descriptor(t: Any) -> None:
    signal.pidfd_send_signal(os.pidfd_open(t["stranger"]), signal.SIGCONT)


@attack
def signal_the_keeper(t: Any) -> None:
    expect(t["parent"])
    os.kill(t["parent"], signal.SIGCONT)


@attack
def limit_a_process(t: Any) -> None:
    limits = struct.pack("=QQ", 4096, 4096)
    call(302, 261, t["stranger"], 7, limits, None)


@attack
def slow_a_process_down(t: Any) -> None:
    os.setpriority(os.PRIO_PROCESS, t["stranger"], 19)


@attack
def pin_a_process(t: Any) -> None:
    os.sched_setaffinity(t["stranger"], {0})


@attack
def compare_processes(t: Any) -> None:
    call(312, 272, os.getpid(), t["stranger"], 1, 0, 0)


@attack
def leave_the_group(t: Any) -> None:
    """Where the group is what is killed, to leave it is to survive."""
    expect(t["grouped"])
    os.setsid()


@attack
def outlive_the_parent(t: Any) -> None:
    if libc.prctl(1, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "prctl")


@attack
def share_memory(t: Any) -> None:
    call(29, 194, 0, 4096, 0o1600)


@attack
def open_a_message_queue(t: Any) -> None:
    name = f"jail-attack-{os.getpid()}".encode()
    call(240, 180, name, os.O_CREAT | os.O_RDWR, 0o600, None)
    call(241, 181, name)


# --- the kernel


@attack
def make_a_user_namespace(t: Any) -> None:
    call(272, 97, 0x10000000)


@attack
def clone_into_a_user_namespace(t: Any) -> None:
    child = call(56, 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attack
def clone3_into_a_user_namespace(t: Any) -> None:
    arguments = struct.pack("=8Q", 0x10000000, 0, 0, 0, signal.SIGCHLD, 0, 0, 0)
    child = call(435, 435, arguments, len(arguments))
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)


@attack
def join_a_namespace(t: Any) -> None:
    fd = os.open(f"/proc/{t['stranger']}/ns/net", os.O_RDONLY)
    call(308, 268, fd, 0)


@attack
def join_the_namespaces_of_a_process(t: Any) -> None:
    call(308, 268, os.pidfd_open(t["stranger"]), 0x40000000)


@attack
def mount(t: Any) -> None:
    call(165, 40, b"tmpfs", t["own"].encode(), b"tmpfs", 0, None)
    call(166, 39, t["own"].encode(), 2)


@attack
def mount_the_new_way(t: Any) -> None:
    os.close(call(430, 430, b"tmpfs", 0))


@attack
def copy_a_mount(t: Any) -> None:
    os.close(call(428, 428, -100, b"/", 1))


@attack
def unmount(t: Any) -> None:
    reaches_the_kernel(166, 39, b"/no/such/mount", 0)


@attack
def change_the_root(t: Any) -> None:
    os.chroot(t["own"])


@attack
def load_a_module(t: Any) -> None:
    reaches_the_kernel(175, 105, None, 0, b"")


@attack
def load_a_module_from_a_file(t: Any) -> None:
    reaches_the_kernel(313, 273, -1, b"", 0)


@attack
def load_a_kernel(t: Any) -> None:
    reaches_the_kernel(246, 104, 0, 0, None, 0xFFFF)


@attack
def load_a_kernel_program(t: Any) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=IIII", 2, 4, 4, 1), 128)
    os.close(call(321, 280, 0, attributes, 128))


@attack
def measure_the_machine(t: Any) -> None:
    attributes = ctypes.create_string_buffer(struct.pack("=IIQ", 1, 112, 0), 112)
    os.close(call(298, 241, attributes, 0, -1, -1, 0))


@attack
def handle_page_faults(t: Any) -> None:
    os.close(call(323, 282, 1))


@attack
def use_the_keyring(t: Any) -> None:
    call(250, 219, 0, -3, 1)  # KEYCTL_GET_KEYRING_ID of the session


@attack
def add_a_key(t: Any) -> None:
    call(248, 217, b"user", b"note", b"prompt", 6, -2)


@attack
def answer_for_the_guard(t: Any) -> None:
    """A second notifier would be asked instead of the guard."""
    libc.prctl(38, 1, 0, 0, 0)
    code = struct.pack("=HBBI", 6, 0, 0, 0x7FFF0000)
    buffer = ctypes.create_string_buffer(code, 8)
    program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(buffer))
    os.close(call(317, 277, 1, 8, program))


@attack
def watch_the_file_systems(t: Any) -> None:
    os.close(call(300, 262, 0, 0))


@attack
def account_for_processes(t: Any) -> None:
    reaches_the_kernel(163, 89, b"/no/such/file")


@attack
def change_the_clock(t: Any) -> None:
    reaches_the_kernel(227, 112, 0, None)


@attack
def change_the_hosts_name(t: Any) -> None:
    reaches_the_kernel(170, 161, None, -1)


@attack
def use_the_ports_of_the_processor(t: Any) -> None:
    call(173, 92 + 100000, 0x80, 1, 1)


@attack
def change_the_layout_of_memory(t: Any) -> None:
    call(135, 92, 0x0040000)  # ADDR_NO_RANDOMIZE


@attack
def call_as_another_architecture(t: Any) -> None:
    """int 0x80 takes the numbers of 32-bit processors, which a filter for 64 bits does not know."""
    if not X86:
        raise OSError(errno.ENOSYS, "there is none here")
    code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    code.write(b"\x53\xb8\x14\x00\x00\x00\xcd\x80\x5b\xc3")  # getpid()
    function = ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    result = function()
    if result < 0:
        raise OSError(-result, os.strerror(-result))


@attack
def call_as_x32(t: Any) -> None:
    call(0x40000000 + 39, 0x40000000 + 172)


# --- who it is


@attack
def become_root(t: Any) -> None:
    os.setresuid(0, 0, 0)


@attack
def become_another_user(t: Any) -> None:
    os.setresuid(12345, 12345, 12345)


@attack
def change_the_groups(t: Any) -> None:
    os.setgroups([0])


@attack
def keep_a_capability(t: Any) -> None:
    status = Path("/proc/self/status").read_text()
    effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff"))
    expect(int(effective, 16))


@attack
def gain_by_a_setuid_program(t: Any) -> None:
    if libc.prctl(39, 0, 0, 0, 0) == 1:  # PR_GET_NO_NEW_PRIVS
        raise OSError(errno.EPERM, "no new privileges")


@attack
def dump_core(t: Any) -> None:
    """With the filter for dumps widened, and the limit raised as far as it goes."""
    import resource

    os.chdir(t["own"])
    child = os.fork()
    if child == 0:
        try:
            Path("/proc/self/coredump_filter").write_text("ff")
        except OSError:
            pass
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        os.abort()
    _, status = os.waitpid(child, 0)
    expect(os.WCOREDUMP(status))


@attack
def raise_a_limit(t: Any) -> None:
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    expect(hard > 4096 or hard == resource.RLIM_INFINITY)


@attack
def use_an_inherited_descriptor(t: Any) -> None:
    expect(t["inherited"])


@attack
def read_an_inherited_variable(t: Any) -> None:
    expect(os.environ.get("YARD_SECRET"))


# --- carrying them out


def judge(attempt: Attempt, targets: dict[str, Any]) -> str:
    """How it ended, in a child that may do to itself what it likes."""
    told, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(told)
        try:
            attempt(targets)
            answer = SUCCEEDED
        except Failed:
            answer = "nothing came of it"
        except OSError as error:
            answer = errno.errorcode.get(error.errno or 0, type(error).__name__)
        except BaseException as error:  # noqa: BLE001 - it answers, whatever happens
            answer = type(error).__name__
        os.write(telling, answer.encode())
        os._exit(0)
    os.close(telling)
    with os.fdopen(told, "rb") as pipe:
        answer = "no answer in time"
        if select.select([pipe], [], [], MOMENT_S)[0]:
            answer = pipe.read().decode() or "killed"
    try:
        os.kill(child, signal.SIGKILL)
    except OSError:
        pass
    os.waitpid(child, 0)
    return answer


def main() -> None:
    targets = json.loads(sys.argv[1])
    targets["inherited"] = any(_is_open(fd) for fd in range(3, 64))
    targets["parent"] = os.getppid()
    names = sys.argv[2:] or list(ATTACKS)
    ends = {name: judge(ATTACKS[name], targets) for name in names}
    Path(targets["own"], "ends.json").write_text(json.dumps(ends))


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
