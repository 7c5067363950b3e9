"""What a daemon needs of the file system, derived from what it is; and nothing else.

Only paths that exist are listed. The home and the models are the caller's to choose.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from ollama_adapter.system.jail import JAIL_UID
from ollama_adapter.system.jail.policy import Level, Policy

LIBRARIES: Final = (
    "/lib",
    "/lib64",
    "/usr/lib",
    "/usr/lib64",
    "/etc/ld.so.cache",
    "/etc/localtime",
)
LOADERS: Final = (
    "/lib64/ld-linux-x86-64.so.2",
    "/lib/ld-linux-aarch64.so.1",
    "/lib/ld-musl-x86_64.so.1",
    "/lib/ld-musl-aarch64.so.1",
)
FACTS: Final = (  # of the machine, and of no process
    *("/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/version", "/proc/loadavg"),
    *("/proc/filesystems", "/proc/sys/vm/overcommit_memory", "/proc/sys/kernel/osrelease"),
)
OPENSSL: Final = (  # its settings, which hold no secret
    *("/etc/ssl/openssl.cnf", "/usr/lib/ssl/openssl.cnf", "/etc/pki/tls/openssl.cnf"),
)
HARDWARE: Final = ("/sys/devices/system/cpu", "/sys/devices/system/node")
GPU_FACTS: Final = (
    *("/sys/bus/pci", "/sys/class/drm", "/sys/class/kfd", "/sys/devices", "/sys/module/nvidia"),
    *("/proc/driver/nvidia", "/etc/vulkan", "/usr/share/vulkan", "/etc/OpenCL"),
)
GPU_DEVICES: Final = ("nvidia*", "dri/renderD*", "kfd")
GPU_LIBRARIES: Final = ("/opt/rocm", "/usr/local/cuda")


def daemon_policy(
    level: Level,
    argv: Sequence[str],
    *,
    home: str,
    models: str,
    port: int,
    gpu: bool = False,
    models_writable: bool = False,
    also_read: Sequence[str] = (),
) -> Policy:
    """The policy for `ollama serve` or for the embedded daemon, told apart by the program.

    `also_read`: what the environment points to besides, such as the directories of LD_LIBRARY_PATH.
    """
    program = os.path.abspath(argv[0])
    script = _interpreter(program)
    python = os.path.realpath(script or program) == os.path.realpath(sys.executable)
    read = [*LIBRARIES, *_facts(level), *HARDWARE, *also_read]
    execute = [program, *LOADERS, *([script] if script else [])]
    if python:
        read += python_paths()
    if script or not python:
        read += _beside(program)
        execute += _runners(program)
    if gpu:
        read += [*GPU_FACTS, *GPU_LIBRARIES]
    write = [home, *([models] if models_writable else [])]
    return Policy(
        level=level,
        read=_existing([*read, *([] if models_writable else [models])]),
        write=_existing(write),
        execute=_existing(execute),
        devices=_existing([*Policy(level).devices, *(gpu_devices() if gpu else ())]),
        ports=(port,),
        own=tuple(write),
        uid=JAIL_UID if os.geteuid() == 0 else 0,
    )


def puller_policy(level: Level, script: str, *, staging: str, cafile: str) -> Policy:
    """For the process that speaks with a registry: Python's library, certificates, one directory."""
    names = ("stdlib", "platstdlib")
    shared = sysconfig.get_config_var("LIBDIR")
    python = [sysconfig.get_paths()[each] for each in names] + ([str(shared)] if shared else [])
    config = os.path.join(sys.prefix, "pyvenv.cfg")
    certificates = [cafile, os.path.realpath(cafile)] if cafile else []
    return Policy(
        level=level,
        read=_existing([*LIBRARIES, *OPENSSL, *python, config, script, *certificates]),
        write=(staging,),
        execute=_existing([os.path.abspath(sys.executable), *LOADERS]),
        devices=_existing(Policy(level).devices),
        own=(staging,),
        uid=JAIL_UID if os.geteuid() == 0 else 0,
        max_files=64,
        sockets=False,
    )


def python_paths() -> list[str]:
    """What this interpreter imports from: its library, its packages, ours. Not where programs lie."""
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    libraries = [sysconfig.get_paths()[name] for name in names]
    shared = sysconfig.get_config_var("LIBDIR")
    config = os.path.join(sys.prefix, "pyvenv.cfg")
    ours = str(Path(__file__).parents[2])
    own_directory = () if sys.flags.safe_path else sys.path[:1]  # of the script, or the current one
    imported = [each for each in sys.path if os.path.isdir(each) and each not in own_directory]
    return [*libraries, *([str(shared)] if shared else []), config, *imported, ours]


def gpu_devices() -> list[str]:
    """The device files of the GPUs that are there."""
    found = [path for pattern in GPU_DEVICES for path in Path("/dev").glob(pattern)]
    return [str(path) for path in sorted(found) if path.is_char_device()]


def _interpreter(program: str) -> str:
    """What a program that is a script is run by; "" for one that is none."""
    with contextlib.suppress(OSError, UnicodeDecodeError), open(program, "rb") as file:
        if file.read(2) == b"#!":
            return file.readline(256).decode().split()[0]
    return ""


def _facts(level: Level) -> Iterable[str]:
    """Where the processes of the machine are seen, only what tells nothing of them."""
    return ("/proc",) if level is Level.NAMESPACES else FACTS


def _beside(program: str) -> list[str]:
    """Ollama's own libraries lie beside it, in `lib/ollama`, or in `../lib/ollama`."""
    here = os.path.dirname(os.path.realpath(program))
    return [os.path.join(here, "lib", "ollama"), os.path.join(here, "..", "lib", "ollama"), program]


def _runners(program: str) -> list[str]:
    """The programs among them, which it starts for each model."""
    return [each for each in _beside(program)[:2] if os.path.isdir(each)]


def _existing(paths: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(os.path.normpath(each) for each in paths if os.path.exists(each)))
